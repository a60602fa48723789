// Blocks of a few rows, as they are multiplied with a panel at once.
//
// A block's pairs are packed step after step: in a step those of one row, then of the next. A step
// is one pair, or with AMX what a tile takes; pairs that fill no step come one by one.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "vectors.h"

namespace windrose {

constexpr int kPanel = 32;  // outputs side by side: two vectors of 16 sums
#if defined(__AMX_BF16__)
constexpr int kMaxBlockRows = 32;  // two tiles: with two of a panel they make four of sums
constexpr int kStep = 16;
constexpr bool kAsksForNext = true;
#elif defined(__AVX512BF16__)
constexpr int kMaxBlockRows = 14;  // 28 sums, two weights and one input fill the 32 registers
constexpr int kStep = 1;
constexpr bool kAsksForNext = false;  // not tried
#else
constexpr int kMaxBlockRows = 6;  // half a panel: 12 sums, two weights, an input and a mask
constexpr int kStep = 1;
constexpr bool kAsksForNext = true;
#endif
// kAsksForNext: several blocks of rows that are multiplied with a panel ask memory for the next one.
// Before loops over a block's rows, whose number is a constant but for tiles.
#ifdef __AMX_BF16__
#define WINDROSE_UNROLL
#else
#define WINDROSE_UNROLL _Pragma("GCC unroll 16")
#endif
// Far enough ahead for memory to answer while up to 14 rows are multiplied; measured: 8 KiB is
// 1.3 times as fast at 8 rows as what the hardware prefetches by itself, 16 KiB is no better.
constexpr int kPrefetchPairs = 8192 / 4;

[[gnu::always_inline]] inline void prefetch_line(const void* at) {
  _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0);
}

// What to ask memory for while a block is multiplied: tiles call it once a step, since they leave
// time for it. Vectors ask for a line with each half of a step: from here on, if there are bytes
// from one to the next, else of their own panel.
struct Ahead {
  const uint8_t* from = nullptr;
  int lines = 0;  // for each step
  int64_t bytes = 0;
  void operator()() {
    for (int line = 0; line < lines; ++line, from += 64) prefetch_line(from);
  }
};

// How `rows` rows are cut into blocks: of nearly equal size, or for tiles full but the last.
struct Blocks {
  explicit Blocks(int64_t rows)
      : rows(rows), count((rows + kMaxBlockRows - 1) / kMaxBlockRows) {}
  int64_t first(int64_t block) const {
    // What fills tiles costs less than what is even.
    return kStep > 1 ? std::min(rows, block * kMaxBlockRows) : rows * block / count;
  }
  int size(int64_t block) const { return int(first(block + 1) - first(block)); }
  int64_t rows;
  int64_t count;
};

// Rows of more pairs are multiplied some at a time, by tiles: of these a block of rows fits into a
// core's second cache many times.
constexpr int64_t kMostWholePairs = 512;

// How many panels a thread takes at once: `usual`; of several blocks of rows with tiles up to
// `most`, but so that every thread has `turns`.
inline int64_t panels_at_once(int64_t usual, int64_t most, int64_t turns, int64_t panels,
                              int threads, int64_t blocks) {
  if (blocks <= 1 || kStep == 1) return usual;
  return std::clamp<int64_t>(panels / (turns * threads), 1, most);
}

// How many such tasks it takes one after the other: several where it asks memory for the next one,
// so that it mostly knows that.
inline int64_t tasks_in_turn(int64_t tasks, int threads, int64_t blocks) {
  if (blocks <= 1 || !kAsksForNext) return 1;
  return std::clamp<int64_t>(tasks / (8 * threads), 1, 8);
}

// Where pair k of row r lies in a block of so many rows, each of `pairs`.
inline int64_t place(int64_t k, int r, int rows, int64_t pairs) {
  const int64_t first = k / kStep * kStep;
  if (kStep == 1 || first + kStep > pairs) return k * rows + r;
  return first * rows + r * kStep + k % kStep;
}

// Packs one block. Row r begins at x + index[r] * stride (index null: r itself).
inline void pack_rows(const bf16* x, int64_t stride, const int32_t* index, int rows,
                      int64_t pairs, RowPair* out) {
  const int64_t whole = kStep == 1 ? 0 : pairs / kStep * kStep;
  for (int r = 0; r < rows; ++r) {
    const bf16* row = x + (index ? index[r] : r) * stride;
    for (int64_t k = 0; k < whole; k += kStep) {
      std::memcpy(out + place(k, r, rows, pairs), row + 2 * k, kStep * sizeof(Pair));
    }
    for (int64_t k = whole; k < pairs; ++k) {
      Pair pair;
      std::memcpy(&pair, row + 2 * k, sizeof pair);
      out[place(k, r, rows, pairs)] = row_pair(pair);
    }
  }
}

// Stores 16 values of row r of a block of `rows` as its pairs from `first` on, a multiple of 8; of
// its `pairs` only those that there are.
inline void store_row_pairs(Floats values, int64_t first, int r, int rows, int64_t pairs,
                            RowPair* block) {
  const __m256i rounded = to_bf16(values);
  if (kStep > 1 && first / kStep * kStep + kStep <= pairs) {
    std::memcpy(block + place(first, r, rows, pairs), &rounded, sizeof rounded);
    return;
  }
  alignas(32) Pair eight[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(eight), rounded);
  const int valid = int(pairs - first < 8 ? pairs - first : 8);
  for (int k = 0; k < valid; ++k) block[place(first + k, r, rows, pairs)] = row_pair(eight[k]);
}

// The same for rows [from, end): `values_of(r)` has a row's.
template <class Size, typename Values>
inline void store_pairs(Size size, int from, int end, int64_t first, int64_t pairs, RowPair* block,
                        Values&& values_of) {
  if (kStep == 1 || first / kStep * kStep + kStep > pairs) {
    WINDROSE_UNROLL
    for (int r = from; r < end; ++r) {
      store_row_pairs(values_of(r), first, r, size, pairs, block);
    }
    return;
  }
  RowPair* to = block + place(first, from, size, pairs);
  for (int r = from; r < end; ++r, to += kStep) {
    const __m256i rounded = to_bf16(values_of(r));
    std::memcpy(to, &rounded, sizeof rounded);
  }
}

}  // namespace windrose
