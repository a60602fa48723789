// Threads that help with a loop, and that nobody waits for unless they are in the middle of it.
//
// An OpenMP loop ends when every thread has come to its barrier, so one that the scheduler keeps
// off its core holds up all others for milliseconds, 50 times a step. Here whoever is running
// takes the work; a helper that comes late finds the loop closed.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>

namespace windrose {

class Pool {
 public:
  // Calls body(i) for every i of [0, count), `chunk` at a time, on up to `threads` threads; or
  // body(i, more), if it takes that: whether i + 1 comes next on the same thread.
  template <typename Body>
  void run(int threads, int64_t count, int64_t chunk, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    // A second caller, such as one that packs weights meanwhile, works by itself.
    std::unique_lock<std::mutex> only(busy_, std::defer_lock);
    if (threads <= 1 || count <= chunk || !only.try_lock()) {
      for (int64_t i = 0; i < count; ++i) call(body, i, i + 1 < count);
      return;
    }
    while (num_helpers_ < threads - 1) start_helper();
    body_ = &body;
    call_ = [](void* what, int64_t i, bool more) { call(*static_cast<Plain*>(what), i, more); };
    count_ = count;
    chunk_ = chunk;
    next_.store(0, std::memory_order_relaxed);
    open_.store(++ticket_);
    open_.notify_all();
    work();
    open_.store(kClosed);
    for (int spin = 0; inside_.load() != 0; ++spin) pause(spin);
  }

 private:
  static constexpr uint64_t kClosed = 0;
  static constexpr int kSpins = 2000;  // some 80 us (AVX2 EPYC): a layer's next loop begins sooner

  // Who spins does nothing: another process that wants the core is to have it at once.
  static void pause(int spin) {
    if (spin % 64 == 63) {
      sched_yield();
    } else {
      _mm_pause();
    }
  }

  template <typename Body>
  static void call(Body& body, int64_t i, bool more) {
    if constexpr (std::is_invocable_v<Body&, int64_t, bool>) {
      body(i, more);
    } else {
      body(i);
    }
  }

  void start_helper() {
    ++num_helpers_;
    std::thread([this] { help(); }).detach();
  }

  void work() {
    for (int64_t i; (i = next_.fetch_add(chunk_, std::memory_order_relaxed)) < count_;) {
      const int64_t end = i + chunk_ < count_ ? i + chunk_ : count_;
      for (; i < end; ++i) call_(body_, i, i + 1 < end);
    }
  }

  void help() {
    uint64_t done = kClosed;
    for (;;) {
      const uint64_t ticket = await_other_than(done);
      if (ticket == kClosed) continue;
      // First in, then look: the caller closes first and then looks who is in.
      inside_.fetch_add(1);
      if (open_.load() == ticket) work();
      inside_.fetch_sub(1);
      done = ticket;
    }
  }

  uint64_t await_other_than(uint64_t done) {
    for (int spin = 0; spin < kSpins; ++spin) {
      const uint64_t ticket = open_.load(std::memory_order_acquire);
      if (ticket != done && ticket != kClosed) return ticket;
      pause(spin);
    }
    const uint64_t now = open_.load();
    if (now == done || now == kClosed) open_.wait(now);
    return open_.load();
  }

  std::mutex busy_;
  int num_helpers_ = 0;
  uint64_t ticket_ = 0;
  void* body_ = nullptr;
  void (*call_)(void*, int64_t, bool) = nullptr;
  int64_t count_ = 0;
  int64_t chunk_ = 1;
  alignas(64) std::atomic<uint64_t> open_{kClosed};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> inside_{0};
};

// The process's only one. Never destroyed: its threads may outlive every other static.
inline Pool& pool() {
  static Pool* const one = new Pool;
  return *one;
}

}  // namespace windrose
