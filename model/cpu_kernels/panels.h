// The forms a packed matrix can have, and products of a few rows with a panel of each.
//
// Every form cuts a matrix [O, I] into panels of 32 outputs. Bf16: see matmul.h. Int8: 32 fp32
// scales, one per output, then 64 bytes for each pair of inputs, 32 pairs of int8. Int4: 32 scales
// for every 128 inputs, then 64 bytes for every two pairs of inputs: 32 words of four numbers,
// which are outputs 0-15 and 16-31 at the first pair, then at the second; a word's place is
// (output, input of the pair). Whole numbers up to 256 are exact in bf16, so products with them
// lose nothing; scales multiply the sums.
#pragma once

#include <type_traits>
#include <vector>

#include "matmul.h"

namespace windrose {

constexpr int kGroupPairs = 64;  // 128 inputs share a scale of int4
constexpr int kPrefetchBytes = 4 * kPrefetchPairs;
constexpr int kFusedRows = 4;  // more rows than this, and numbers are turned into bf16 ahead

inline void prefetch(const uint8_t* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetchBytes), _MM_HINT_T0);
}

template <int ROWS>
inline void clear(__m512 (&sums)[ROWS][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
}

// to = scales * from, or to += scales * from.
template <int ROWS, bool ADD>
inline void scale(const float* scales, __m512 (&from)[ROWS][2], __m512 (&to)[ROWS][2]) {
  const __m512 low = _mm512_loadu_ps(scales);
  const __m512 high = _mm512_loadu_ps(scales + 16);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    to[r][0] = ADD ? _mm512_fmadd_ps(low, from[r][0], to[r][0]) : _mm512_mul_ps(low, from[r][0]);
    to[r][1] = ADD ? _mm512_fmadd_ps(high, from[r][1], to[r][1]) : _mm512_mul_ps(high, from[r][1]);
  }
}

template <int ROWS>
inline void multiply_pair(const Pair* rows, __m512bh low, __m512bh high,
                          __m512 (&sums)[ROWS][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    const __m512bh x = (__m512bh)_mm512_set1_epi32(int(rows[r]));
    sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, low);
    sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, high);
  }
}

struct Bf16 {
  static int64_t panel_bytes(int64_t pairs) { return pairs * kPanel * int64_t(sizeof(Pair)); }

  // The panel's numbers as bf16; `buffer` is room for them where they are something else.
  static const Pair* numbers(const uint8_t* panel, int64_t, Pair*) {
    return reinterpret_cast<const Pair*>(panel);
  }

  // sums = rows times the panel, whose numbers are there as bf16 already.
  template <int ROWS>
  static void multiply_numbers(const Pair* rows, const Pair* numbers, const uint8_t*,
                               int64_t pairs, __m512 (&sums)[ROWS][2]) {
    windrose::multiply<ROWS>(rows, numbers, pairs, sums);
  }

  // The same in one pass over the panel.
  template <int ROWS>
  static void multiply(const Pair* rows, const uint8_t* panel, int64_t pairs,
                       __m512 (&sums)[ROWS][2]) {
    windrose::multiply<ROWS>(rows, reinterpret_cast<const Pair*>(panel), pairs, sums);
  }
};

struct Int8 {
  static int64_t panel_bytes(int64_t pairs) { return kPanel * 4 + pairs * 64; }

  static __m512 sixteen(const uint8_t* at) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }

  static void pair(const uint8_t* at, __m512bh& low, __m512bh& high) {
    prefetch(at);
    low = _mm512_cvtne2ps_pbh(sixteen(at + 16), sixteen(at));
    high = _mm512_cvtne2ps_pbh(sixteen(at + 48), sixteen(at + 32));
  }

  static void turn(const uint8_t* at, int64_t pairs, Pair* out) {
    for (int64_t k = 0; k < pairs; ++k) {
      __m512bh low, high;
      pair(at + 64 * k, low, high);
      _mm512_storeu_si512(out + k * kPanel, (__m512i)low);
      _mm512_storeu_si512(out + k * kPanel + 16, (__m512i)high);
    }
  }

  static const Pair* numbers(const uint8_t* panel, int64_t pairs, Pair* buffer) {
    turn(panel + kPanel * 4, pairs, buffer);
    return buffer;
  }

  template <int ROWS>
  static void multiply_numbers(const Pair* rows, const Pair* numbers, const uint8_t* panel,
                               int64_t pairs, __m512 (&sums)[ROWS][2]) {
    windrose::multiply<ROWS>(rows, numbers, pairs, sums);
    scale<ROWS, false>(reinterpret_cast<const float*>(panel), sums, sums);
  }

  template <int ROWS>
  static void multiply(const Pair* rows, const uint8_t* panel, int64_t pairs,
                       __m512 (&sums)[ROWS][2]) {
    const uint8_t* data = panel + kPanel * 4;
    clear<ROWS>(sums);
    if constexpr (ROWS <= kFusedRows) {
      for (int64_t k = 0; k < pairs; ++k) {
        __m512bh low, high;
        pair(data + 64 * k, low, high);
        multiply_pair<ROWS>(rows + k * ROWS, low, high, sums);
      }
    } else {
      alignas(64) Pair buffer[kGroupPairs * kPanel];
      for (int64_t k = 0; k < pairs; k += kGroupPairs) {
        const int64_t some = pairs - k < kGroupPairs ? pairs - k : kGroupPairs;
        turn(data + 64 * k, some, buffer);
        multiply_onto<ROWS>(rows + k * ROWS, buffer, some, sums);
      }
    }
    scale<ROWS, false>(reinterpret_cast<const float*>(panel), sums, sums);
  }
};

struct Int4 {
  static int64_t groups(int64_t pairs) { return (pairs + kGroupPairs - 1) / kGroupPairs; }

  static int64_t panel_bytes(int64_t pairs) {
    return groups(pairs) * kPanel * 4 + (pairs + 1) / 2 * 64;
  }

  // 0 to 7 and -8 to -1 as bf16; twice, since five bits of an index are looked at.
  static __m512i table() {
    alignas(64) static constexpr uint16_t kNumbers[32] = {
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
    return _mm512_load_si512(kNumbers);
  }

  static void two_pairs(const uint8_t* at, __m512i table, __m512bh (&out)[4]) {
    prefetch(at);
    const __m512i words = _mm512_loadu_si512(at);
    out[0] = (__m512bh)_mm512_permutexvar_epi16(words, table);
    out[1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table);
    out[2] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), table);
    out[3] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), table);
  }

  static void turn(const uint8_t* at, int64_t pairs, __m512i table, Pair* out) {
    for (int64_t k = 0; k < pairs; k += 2) {
      __m512bh numbers[4];
      two_pairs(at + 32 * k, table, numbers);
      for (int i = 0; i < (k + 1 < pairs ? 4 : 2); ++i) {
        _mm512_storeu_si512(out + k * kPanel + 16 * i, (__m512i)numbers[i]);
      }
    }
  }

  static const Pair* numbers(const uint8_t* panel, int64_t pairs, Pair* buffer) {
    turn(panel + groups(pairs) * kPanel * 4, pairs, table(), buffer);
    return buffer;
  }

  template <int ROWS>
  static void multiply_numbers(const Pair* rows, const Pair* numbers, const uint8_t* panel,
                               int64_t pairs, __m512 (&sums)[ROWS][2]) {
    const float* scales = reinterpret_cast<const float*>(panel);
    clear<ROWS>(sums);
    for (int64_t k = 0; k < pairs; k += kGroupPairs, scales += kPanel) {
      const int64_t some = pairs - k < kGroupPairs ? pairs - k : kGroupPairs;
      __m512 group[ROWS][2];
      windrose::multiply<ROWS>(rows + k * ROWS, numbers + k * kPanel, some, group);
      scale<ROWS, true>(scales, group, sums);
    }
  }

  template <int ROWS>
  static void multiply(const Pair* rows, const uint8_t* panel, int64_t pairs,
                       __m512 (&sums)[ROWS][2]) {
    const float* scales = reinterpret_cast<const float*>(panel);
    const uint8_t* data = panel + groups(pairs) * kPanel * 4;
    const __m512i values = table();
    clear<ROWS>(sums);
    for (int64_t k = 0; k < pairs; k += kGroupPairs, scales += kPanel) {
      const int64_t some = pairs - k < kGroupPairs ? pairs - k : kGroupPairs;
      __m512 group[ROWS][2];
      if constexpr (ROWS <= kFusedRows) {
        clear<ROWS>(group);
        for (int64_t j = k; j < k + some; j += 2) {
          __m512bh numbers[4];
          two_pairs(data + 32 * j, values, numbers);
          multiply_pair<ROWS>(rows + j * ROWS, numbers[0], numbers[1], group);
          if (j + 1 < pairs) {
            multiply_pair<ROWS>(rows + (j + 1) * ROWS, numbers[2], numbers[3], group);
          }
        }
      } else {
        alignas(64) Pair buffer[kGroupPairs * kPanel];
        turn(data + 32 * k, some, values, buffer);
        windrose::multiply<ROWS>(rows + k * ROWS, buffer, some, group);
      }
      scale<ROWS, true>(scales, group, sums);
    }
  }
};

// A panel for several blocks of rows: turned into bf16 once if there are more than one.
template <class Form>
class Panel {
 public:
  Panel(const uint8_t* panel, int64_t pairs, int64_t num_blocks) : panel_(panel), pairs_(pairs) {
    if (num_blocks <= 1) return;
    static thread_local std::vector<Pair> buffer;
    if constexpr (!std::is_same_v<Form, Bf16>) {
      if (buffer.size() < size_t(pairs * kPanel)) buffer.resize(pairs * kPanel);
    }
    numbers_ = Form::numbers(panel, pairs, buffer.data());
  }

  template <int ROWS>
  void multiply(const Pair* rows, __m512 (&sums)[ROWS][2]) const {
    if (numbers_) {
      Form::template multiply_numbers<ROWS>(rows, numbers_, panel_, pairs_, sums);
    } else {
      Form::template multiply<ROWS>(rows, panel_, pairs_, sums);
    }
  }

 private:
  const uint8_t* panel_;
  int64_t pairs_;
  const Pair* numbers_ = nullptr;
};

// Calls `body(form)` with the form whose numbers have so many bits.
template <typename Body>
inline void with_form(int bits, Body&& body) {
  if (bits == 16) return body(Bf16());
  if (bits == 8) return body(Int8());
  body(Int4());
}

}  // namespace windrose
