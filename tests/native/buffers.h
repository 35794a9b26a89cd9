// Memory that ends where its last element does, and numbers to fill it with.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace driver {

using Floats = std::vector<float>;

// Where an array lies. `heap`: an allocation of its size, beside which AddressSanitizer keeps watch. `odd`: the same,
// four bytes further on than any vector would like it. `page`: up to the end of a page with none behind it, because
// compilers do not instrument masked loads and stores, and the processor notices every one.
enum class Place { heap, odd, page };
constexpr Place kPlaces[] = {Place::heap, Place::odd, Place::page};

// Uninitialised bytes in the place, all ones; freed with `give_back`.
struct Block {
    unsigned char* whole;
    std::size_t whole_bytes;
    unsigned char* begin;
};
Block take(std::size_t bytes, std::size_t alignment, Place place);
void give_back(const Block& block, Place place);

// `count` elements, all bits of which are ones until they are written: NaN in floats.
template <typename T>
class Buffer {
   public:
    Buffer(int64_t count, Place place)
        : count_(count), place_(place), block_(take(static_cast<std::size_t>(count) * sizeof(T), alignof(T), place)) {}
    Buffer(const std::vector<T>& values, Place place) : Buffer(static_cast<int64_t>(values.size()), place) {
        if (!values.empty()) std::memcpy(block_.begin, values.data(), values.size() * sizeof(T));
    }
    ~Buffer() { give_back(block_, place_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() { return reinterpret_cast<T*>(block_.begin); }
    const T* data() const { return reinterpret_cast<const T*>(block_.begin); }
    int64_t count() const { return count_; }
    bool untouched() const {
        return std::all_of(block_.begin, block_.begin + bytes(), [](unsigned char byte) { return byte == 0xff; });
    }
    std::vector<T> values() const { return std::vector<T>(data(), data() + count_); }

   private:
    std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }

    int64_t count_;
    Place place_;
    Block block_;
};

// The same numbers on every machine.
class Random {
   public:
    explicit Random(uint64_t seed) : state_(seed) {}

    // 0 to below - 1
    int64_t below(int64_t limit) { return static_cast<int64_t>(next() % static_cast<uint64_t>(limit)); }

    float within(float size) { return size * (static_cast<float>(next() >> 40) * 0x1p-23f - 1.0f); }

    Floats floats(int64_t count, float size) {
        Floats values(static_cast<std::size_t>(count));
        for (float& value : values) value = within(size);
        return values;
    }

   private:
    // splitmix64
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    uint64_t state_;
};

}  // namespace driver
