// The products of matmul.h by AMX: sums lie in memory and pass through tiles of 16 by 16.
//
// A product of tiles adds its 16 first products of pairs, its 16 second ones, and both to the sum:
// other rounding than that of the vectors, the same for every number of rows.
#pragma once

#include <initializer_list>

#include "blocks.h"

namespace windrose {

// The sums of 16 rows with 16 outputs, by row; then rows, and what they are multiplied with.
enum Tile { kSums00, kSums01, kSums10, kSums11, kRows0, kRows1, kLow, kHigh };

// How many rows, and for how many there is room.
struct RowCount {
  static constexpr int value = kMaxBlockRows;
  int rows;
  constexpr operator int() const { return rows; }
};

// Shapes this thread's tiles for so many rows, until it goes out of scope. What else uses tiles
// (oneDNN) shapes them anew.
class TilesInUse {
 public:
  explicit TilesInUse(int rows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    const auto shape = [&](int tile, int count) {
      shapes.row_bytes[tile] = count ? 64 : 0;
      shapes.rows[tile] = uint8_t(count);
    };
    const int first = rows < 16 ? rows : 16;
    for (int tile : {kSums00, kSums01, kRows0}) shape(tile, first);
    for (int tile : {kSums10, kSums11, kRows1}) shape(tile, rows - first);
    for (int tile : {kLow, kHigh}) shape(tile, 16);
    // GCC's own instruction says that it reads eight bytes.
    asm volatile("ldtilecfg %0" : : "m"(shapes));
  }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
  ~TilesInUse() { _tile_release(); }
};

// GCC's own tile instructions take numbers in digits only, and do not say that they read memory.
template <Tile TILE>
inline void load_tile(const void* at, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(at), "r"(stride_bytes), "i"(TILE) : "memory");
}
// The same for what comes from a core's second cache: with the hint that it is not read again soon
// an eighth faster than without.
template <Tile TILE>
inline void stream_tile(const void* at, int64_t stride_bytes) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(at), "r"(stride_bytes), "i"(TILE) : "memory");
}
template <Tile TILE>
inline void store_tile(void* at, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(at), "r"(stride_bytes), "i"(TILE) : "memory");
}
// sums += rows times weights.
template <Tile SUMS, Tile ROWS, Tile WEIGHTS>
inline void add_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(ROWS), "i"(WEIGHTS));
}

template <Tile TILE>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
}

// The whole steps of more than 16 rows (TWO) or fewer; ONTO: sums += products, not =.
template <bool TWO, bool ONTO, typename Meanwhile>
inline void multiply_steps(int num_rows, const RowPair* rows, const Pair* panel, int64_t steps,
                           Floats (*sums)[2], Meanwhile& meanwhile) {
  constexpr int64_t kOfSums = sizeof *sums, kOfPanel = kPanel * sizeof(Pair);
  constexpr int64_t kOfRows = kStep * sizeof(Pair);
  if (ONTO) {
    load_tile<kSums00>(&sums[0][0], kOfSums);
    load_tile<kSums01>(&sums[0][1], kOfSums);
    if (TWO) {
      load_tile<kSums10>(&sums[16][0], kOfSums);
      load_tile<kSums11>(&sums[16][1], kOfSums);
    }
  } else {
    clear_tile<kSums00>();
    clear_tile<kSums01>();
    if (TWO) {
      clear_tile<kSums10>();
      clear_tile<kSums11>();
    }
  }
  for (int64_t step = 0; step < steps; ++step) {
    const Pair* at = panel + step * kStep * kPanel;
    const RowPair* of_step = rows + step * kStep * num_rows;
    stream_tile<kLow>(at, kOfPanel);
    stream_tile<kRows0>(of_step, kOfRows);
    add_products<kSums00, kRows0, kLow>();
    stream_tile<kHigh>(at + 16, kOfPanel);
    add_products<kSums01, kRows0, kHigh>();
    if (TWO) {
      stream_tile<kRows1>(of_step + 16 * kStep, kOfRows);
      add_products<kSums10, kRows1, kLow>();
      add_products<kSums11, kRows1, kHigh>();
    }
    meanwhile();
  }
  store_tile<kSums00>(&sums[0][0], kOfSums);
  store_tile<kSums01>(&sums[0][1], kOfSums);
  if (TWO) {
    store_tile<kSums10>(&sums[16][0], kOfSums);
    store_tile<kSums11>(&sums[16][1], kOfSums);
  }
}

template <bool ONTO, typename Meanwhile>
inline void multiply_by_tiles(RowCount size, const RowPair* rows, const Pair* panel, int64_t pairs,
                              Floats (&sums)[kMaxBlockRows][2], Meanwhile& meanwhile) {
  const int64_t steps = pairs / kStep;
  if (size > 16) {
    multiply_steps<true, ONTO>(size, rows, panel, steps, sums, meanwhile);
  } else {
    multiply_steps<false, ONTO>(size, rows, panel, steps, sums, meanwhile);
  }
  for (int64_t k = steps * kStep; k < pairs; ++k) {
    const Pairs low = load_pairs(panel + k * kPanel);
    const Pairs high = load_pairs(panel + k * kPanel + 16);
    for (int r = 0; r < size; ++r) {
      const RowPair x = rows[k * size + r];
      sums[r][0] = dot(sums[r][0], x, low);
      sums[r][1] = dot(sums[r][1], x, high);
    }
  }
}

// sums[r][0..1] += row r times the panel. Tiles are in use for the block's rows; `meanwhile` is
// called after every step.
template <typename Meanwhile>
inline void multiply_onto(RowCount size, const RowPair* rows, const Pair* panel, int64_t pairs,
                          Floats (&sums)[kMaxBlockRows][2], Meanwhile& meanwhile) {
  multiply_by_tiles<true>(size, rows, panel, pairs, sums, meanwhile);
}

// sums[r][0..1] = row r times the panel.
template <typename Meanwhile>
inline void multiply(RowCount size, const RowPair* rows, const Pair* panel, int64_t pairs,
                     Floats (&sums)[kMaxBlockRows][2], Meanwhile& meanwhile) {
  multiply_by_tiles<false>(size, rows, panel, pairs, sums, meanwhile);
}

// Calls `body(size)` with the number of rows, for which tiles are in use.
template <typename Body>
inline void with_rows(int rows, Body&& body) {
  const TilesInUse tiles(rows);
  body(RowCount{rows});
}

}  // namespace windrose
