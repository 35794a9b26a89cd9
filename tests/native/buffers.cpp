#include "buffers.h"

#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

namespace driver {

Block take(std::size_t bytes, std::size_t alignment, Place place) {
    if (place != Place::page) {
        const std::size_t shift = place == Place::odd ? (alignment > 4 ? alignment : 4) : 0;
        auto* whole = new unsigned char[bytes + shift];
        std::memset(whole, 0xff, bytes + shift);
        return {whole, bytes + shift, whole + shift};
    }
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t inside = (bytes + page - 1) / page * page;
    void* mapped = mmap(nullptr, inside + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) fail("no memory");
    auto* whole = static_cast<unsigned char*>(mapped);
    if (mprotect(whole + inside, page, PROT_NONE) != 0) fail("no page could be closed");
    std::memset(whole, 0xff, inside);
    return {whole, inside + page, whole + inside - bytes};
}

void give_back(const Block& block, Place place) {
    if (place != Place::page) {
        delete[] block.whole;
    } else {
        munmap(block.whole, block.whole_bytes);
    }
}

}  // namespace driver
