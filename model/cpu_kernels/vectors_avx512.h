// The words of vectors.h by AVX512-BF16, which takes numbers below the normal range for zeros.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "pairs.h"

namespace windrose {

struct Floats {
  __m512 v;
};
struct Pairs {
  __m512i v;
};

inline Floats zeros() { return {_mm512_setzero_ps()}; }
inline Floats all(float x) { return {_mm512_set1_ps(x)}; }
inline Floats load(const float* at) { return {_mm512_loadu_ps(at)}; }
inline void store(float* at, Floats x) { _mm512_storeu_ps(at, x.v); }
inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
// a * b + c and c - a * b, rounded once.
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats fnma(Floats a, Floats b, Floats c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
// b where one of them is NaN.
inline Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x.v); }
inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x.v); }
inline Floats select(Lanes lanes, Floats yes, Floats no) {
  return {_mm512_mask_mov_ps(no.v, __mmask16(lanes), yes.v)};
}
inline Lanes is_nan(Floats x) { return _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q); }
inline Lanes equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline Floats round_to_whole(Floats x) { return {_mm512_roundscale_ps(x.v, 0)}; }

// Rounded to nearest even.
inline __m256i to_bf16(Floats x) { return (__m256i)_mm512_cvtneps_pbh(x.v); }
inline Floats from_bf16(__m256i x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
// Of `count` lanes at most; reads and writes nothing beyond, and reads zeros there.
inline __m256i load_some_bf16(const bf16* at, int64_t count) {
  return _mm256_maskz_loadu_epi16(__mmask16(first_lanes(count)), at);
}
inline void store_some_bf16(bf16* at, __m256i x, int64_t count) {
  _mm256_mask_storeu_epi16(at, __mmask16(first_lanes(count)), x);
}

inline Pairs load_pairs(const void* at) { return {_mm512_loadu_si512(at)}; }
inline void store(Pair* at, Pairs x) { _mm512_storeu_si512(at, x.v); }
// sum + the products of each lane's pairs.
inline Floats dot(Floats sum, Pairs x, Pairs y) {
  return {_mm512_dpbf16_ps(sum.v, (__m512bh)x.v, (__m512bh)y.v)};
}

// A pair of a row as it is multiplied with many others: ready to be spread over all lanes.
using RowPair = Pair;
inline RowPair row_pair(Pair x) { return x; }
inline Floats dot(Floats sum, RowPair x, Pairs y) {
  return dot(sum, Pairs{_mm512_set1_epi32(int(x))}, y);
}

// A pair of each of 16 rows that begin `stride` pairs apart; zeros and no access for other lanes.
inline Pairs column(const bf16* first, int stride, Lanes lanes) {
  const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i offsets = _mm512_mullo_epi32(numbers, _mm512_set1_epi32(stride));
  return {_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), __mmask16(lanes), offsets, first,
                                      sizeof(Pair))};
}

// The pairs of 32 whole numbers in a byte each, as they are cheapest to multiply by.
using Numbers = Pairs;
inline Numbers numbers_of_bytes(const uint8_t* at) {
  const auto sixteen = [](const uint8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  };
  return {(__m512i)_mm512_cvtne2ps_pbh(sixteen(at + 16), sixteen(at))};
}
inline Pairs pairs_of(Numbers x) { return x; }

// The whole numbers -8 to 7 that four bits of each half of a pair are; `part` 0 is the lowest four.
class Nibbles {
 public:
  Nibbles() {
    // Twice, since five bits of an index are looked at.
    alignas(64) static constexpr bf16 kNumbers[32] = {
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
    table_ = _mm512_load_si512(kNumbers);
  }
  template <int PART>
  Pairs numbers(Pairs words) const {
    return {_mm512_permutexvar_epi16(_mm512_srli_epi16(words.v, 4 * PART), table_)};
  }

 private:
  __m512i table_;
};

// p * 2^n for whole n; 0 and infinity beyond the range, those of infinite n with p NaN too.
inline Floats times_power_of_2(Floats p, Floats n) { return {_mm512_scalef_ps(p.v, n.v)}; }
inline Floats within_range_of_exp(Floats x) { return x; }

}  // namespace windrose
