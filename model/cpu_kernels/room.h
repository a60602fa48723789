// Buffers that live as long as their thread and grow to its largest step.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace windrose {

// Room for values whose lines of the cache are whole, in huge pages if it is large: what is read
// many times is then found faster, and falls evenly into a core's second cache.
template <typename T>
class Room {
 public:
  Room() = default;
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { std::free(data_); }

  T* data() const { return data_; }

  // Makes room for `count` values; what was in it is lost where it grows.
  T* fit(int64_t count) {
    if (count <= count_) return data_;
    std::free(data_);
    const size_t whole = count * sizeof(T) < kHugePage ? 64 : kHugePage;
    const size_t bytes = (count * sizeof(T) + whole - 1) / whole * whole;
    data_ = static_cast<T*>(std::aligned_alloc(whole, bytes));
    if (!data_) throw std::bad_alloc();
    if (whole == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);  // no matter if it is refused
    count_ = count;
    return data_;
  }

 private:
  static constexpr size_t kHugePage = 2 << 20;
  T* data_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace windrose
