// Products of a few rows with a packed bf16 matrix, summed in fp32 by AVX512-BF16.
//
// A matrix [O, I] is packed into panels of 32 outputs; a panel holds, for each pair of inputs,
// 32 pairs of bf16 (128 bytes). Rows are packed into blocks of up to 14: for each pair of inputs
// one pair per row. Every sum runs over the inputs in order, so a row's result does not depend
// on the rows beside it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace windrose {

using bf16 = uint16_t;
using Pair = uint32_t;  // two neighbouring bf16

constexpr int kPanel = 32;        // outputs side by side: two vectors of 16 sums
constexpr int kMaxBlockRows = 14; // 28 sums, two weights and one input fill the 32 registers
// Far enough ahead for memory to answer while up to 14 rows are multiplied; measured: 8 KiB is
// 1.3 times as fast at 8 rows as what the hardware prefetches by itself, 16 KiB is no better.
constexpr int kPrefetchPairs = 8192 / 4;

// How `rows` rows are cut into blocks of nearly equal size.
struct Blocks {
  explicit Blocks(int64_t rows)
      : rows(rows), count((rows + kMaxBlockRows - 1) / kMaxBlockRows) {}
  int64_t first(int64_t block) const { return rows * block / count; }
  int size(int64_t block) const { return int(first(block + 1) - first(block)); }
  int64_t rows;
  int64_t count;
};

// Packs one block: out[pair][row]. Row r begins at x + index[r] * stride (index null: r itself).
inline void pack_rows(const bf16* x, int64_t stride, const int32_t* index, int rows,
                      int64_t pairs, Pair* out) {
  for (int r = 0; r < rows; ++r) {
    const bf16* row = x + (index ? index[r] : r) * stride;
    for (int64_t k = 0; k < pairs; ++k) {
      std::memcpy(out + k * rows + r, row + 2 * k, sizeof(Pair));
    }
  }
}

// sums[r][0..1] += row r times the panel.
template <int ROWS>
inline void multiply_onto(const Pair* rows, const Pair* panel, int64_t pairs,
                          __m512 (&sums)[ROWS][2]) {
  for (int64_t k = 0; k < pairs; ++k) {
    const Pair* at = panel + k * kPanel;
    _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetchPairs), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetchPairs + 16), _MM_HINT_T0);
    const __m512bh low = (__m512bh)_mm512_loadu_si512(at);
    const __m512bh high = (__m512bh)_mm512_loadu_si512(at + 16);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(int(rows[k * ROWS + r]));
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, low);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, high);
    }
  }
}

// sums[r][0..1] = row r times the panel.
template <int ROWS>
inline void multiply(const Pair* rows, const Pair* panel, int64_t pairs,
                     __m512 (&sums)[ROWS][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    sums[r][0] = _mm512_setzero_ps();
    sums[r][1] = _mm512_setzero_ps();
  }
  multiply_onto<ROWS>(rows, panel, pairs, sums);
}

// Calls `body<ROWS>()` with the number of rows as a constant.
template <typename Body>
inline void with_rows(int rows, Body&& body) {
  switch (rows) {
#define WINDROSE_CASE(n) \
  case n:                \
    return body(std::integral_constant<int, n>());
    WINDROSE_CASE(1) WINDROSE_CASE(2) WINDROSE_CASE(3) WINDROSE_CASE(4) WINDROSE_CASE(5)
    WINDROSE_CASE(6) WINDROSE_CASE(7) WINDROSE_CASE(8) WINDROSE_CASE(9) WINDROSE_CASE(10)
    WINDROSE_CASE(11) WINDROSE_CASE(12) WINDROSE_CASE(13) WINDROSE_CASE(14)
#undef WINDROSE_CASE
  }
}

// 16 fp32 to bf16, rounded to nearest even; `count` of them are stored.
inline void store_bf16(bf16* out, __m512 values, int count = 16) {
  const __mmask16 mask = count >= 16 ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
  _mm256_mask_storeu_epi16(out, mask, (__m256i)_mm512_cvtneps_pbh(values));
}

// 16 bf16 to fp32.
inline __m512 load_bf16(const bf16* from) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

// e^x, within 2 units in the last place of fp32; 0 and infinity beyond its range, NaN of NaN.
inline __m512 exp_ps(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

}  // namespace windrose
