#include "threads.h"

#include <atomic>
#include <thread>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace unrolled {
namespace {

std::atomic<ParallelFor> parallel_for{nullptr};
std::atomic<int64_t> owner{0};

int64_t process() {
#if defined(_WIN32)
    return 1;
#else
    return getpid();
#endif
}

class FlushDenormals {
   public:
#if defined(__SSE2__) || defined(_M_X64)
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
    ~FlushDenormals() { _mm_setcsr(before_); }

   private:
    unsigned before_;
#elif defined(__aarch64__) && !defined(_MSC_VER)
    FlushDenormals() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
        __asm__ volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t{1} << 24)));
    }
    ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before_)); }

   private:
    uint64_t before_;
#endif
};

void relax() {
#if defined(__SSE2__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
    __asm__ volatile("yield");
#endif
}

// Counts slots, not threads: a thread arrives with all of its slots at once, so one that holds them all never waits.
class Barrier {
   public:
    explicit Barrier(int64_t slots) : slots_(slots) {}

    void arrive(int64_t slots) {
        const int64_t round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(slots, std::memory_order_acq_rel) + slots == slots_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        // About 20 us of spinning, then the processor is offered: the missing thread may be waiting for this very one.
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
            if (spins < kSpins) {
                relax();
            } else {
                std::this_thread::yield();
            }
        }
    }

   private:
    static constexpr int kSpins = 2000;
    const int64_t slots_;
    alignas(64) std::atomic<int64_t> arrived_{0};
    alignas(64) std::atomic<int64_t> round_{0};
};

struct Team {
    Share share;
    const void* task;
    int64_t phases;
    Barrier barrier;
};

void take_part(int64_t begin, int64_t end, void* context) {
    Team& team = *static_cast<Team*>(context);
    const FlushDenormals flush;
    for (int64_t phase = 0; phase < team.phases; ++phase) {
        for (int64_t slot = begin; slot < end; ++slot) team.share(team.task, phase, slot);
        if (phase + 1 < team.phases) team.barrier.arrive(end - begin);
    }
}

}  // namespace

void use_parallel_for(ParallelFor function) {
    owner.store(process(), std::memory_order_relaxed);
    parallel_for.store(function, std::memory_order_release);
}

void run_phases(Share share, const void* task, int64_t phases, int64_t slots) {
    Team team{share, task, phases, Barrier(slots)};
    const ParallelFor run = parallel_for.load(std::memory_order_acquire);
    // A forked child has the parent's thread pool without its threads: whoever opened a region there would hang.
    const bool alone = slots == 1 || run == nullptr || owner.load(std::memory_order_relaxed) != process();
    if (alone || run(0, slots, 1, take_part, &team) != 0) take_part(0, slots, &team);
}

}  // namespace unrolled
