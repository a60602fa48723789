// Attention of consecutive rows of one sequence over the paged cache, in which they are already:
// blocks of rows times panels of positions, with a running softmax (Dao, arXiv 2205.14135).
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "matmul.h"
#include "paged_cache.h"
#include "pool.h"
#include "room.h"

using namespace windrose;

namespace {

constexpr int kChunk = 128;  // positions at once: their scores stay in a core's first cache
constexpr float kNone = -std::numeric_limits<float>::infinity();

// One key-value head's keys and values in the order `multiply` reads, for positions [0, padded).
struct PackedHead {
  Room<Pair> keys;    // panels of 32 positions, each [dim / 2][32]
  Room<Pair> values;  // panels of 32 dimensions, each [padded / 2][32]
};

// What a block of rows attends to, and how.
struct Span {
  int64_t start;   // position of the chunk's first row
  int64_t window;  // <= 0: none
  int64_t padded;
  int64_t dim;
  float scale;
  int64_t first_seen(int64_t position) const {
    return window > 0 && position >= window ? position - window + 1 : 0;
  }
};

// Packs 32 positions of one head; those from `end` on are zeros.
void pack_positions(const Cache& cache, const int64_t* table, int64_t head, int64_t first,
                    int64_t end, int64_t padded, PackedHead& out) {
  const int64_t pairs = cache.head_dim / 2;
  const bf16* keys[kPanel];
  for (int i = 0; i < kPanel; ++i) {
    keys[i] = first + i < end ? cache.slot(table, first + i) + head * cache.head_dim : nullptr;
  }
  Pair* key_panel = out.keys.data() + first * pairs;
  for (int i = 0; i < kPanel; ++i) {
    for (int64_t k = 0; k < pairs; ++k) {
      Pair pair = 0;
      if (keys[i]) std::memcpy(&pair, keys[i] + 2 * k, sizeof pair);
      key_panel[k * kPanel + i] = pair;
    }
  }
  const int64_t to_value = cache.kv_heads * cache.head_dim;  // from a head's keys to its values
  for (int i = 0; i < kPanel; i += 2) {
    for (int64_t d = 0; d < cache.head_dim; ++d) {
      const Pair even = keys[i] ? keys[i][to_value + d] : 0;
      const Pair odd = keys[i + 1] ? keys[i + 1][to_value + d] : 0;
      const int64_t panel = d / kPanel;
      out.values.data()[(panel * (padded / 2) + (first + i) / 2) * kPanel + d % kPanel] =
          even | odd << 16;
    }
  }
}

// Scores of `size` rows for `count` positions from `from` on (a multiple of 32), masked; positions
// past the row's own are hidden, as are those before its window.
template <class Size>
void score(Size size, const RowPair* rows, const PackedHead& head, const Span& span, int64_t row_position,
           int64_t from, int64_t count, float (*scores)[kChunk]) {
  const int64_t pairs = span.dim / 2;
  for (int64_t p = 0; p < count; p += kPanel) {
    Floats sums[Size::value][2];
    multiply(size, rows, head.keys.data() + (from + p) * pairs, pairs, sums);
    const int64_t first = from + p;
    const bool all_seen = first + kPanel - 1 <= row_position &&
                          first >= span.first_seen(row_position + size - 1);
    for (int r = 0; r < size; ++r) {
      for (int half = 0; half < 2; ++half) {
        Floats scaled = sums[r][half] * all(span.scale);
        if (!all_seen) {
          const int64_t last = row_position + r - first - 16 * half;  // lanes 0..last are seen
          const int64_t lowest = span.first_seen(row_position + r) - first - 16 * half;
          uint32_t seen = last < 0 ? 0 : last >= 15 ? 0xffff : (1u << (last + 1)) - 1;
          if (lowest > 0) seen &= lowest > 15 ? 0 : ~((1u << lowest) - 1);
          scaled = select(seen, scaled, all(kNone));
        }
        store(scores[r] + p + 16 * half, scaled);
      }
    }
  }
}

// Attends for `size` rows of one query head; out rows are `out_stride` apart.
template <class Size>
void attend(Size size, const RowPair* rows, const PackedHead& head, const Span& span, int64_t row_position,
            bf16* out, int64_t out_stride) {
  constexpr int kRows = Size::value;
  alignas(64) float scores[kRows][kChunk];
  alignas(64) RowPair weights[kChunk / 2 * kRows];  // bf16, as `multiply` reads rows
  float largest[kRows], total[kRows];
  static thread_local Room<float> room;
  float* const sums_so_far = room.fit(size * span.dim);  // [dim / 32][size][32]
  std::fill_n(sums_so_far, size * span.dim, 0.0f);
  std::fill_n(largest, kRows, kNone);
  std::fill_n(total, kRows, 0.0f);
  Ahead nothing;
  const int64_t end = row_position + size;
  for (int64_t from = span.first_seen(row_position) / kPanel * kPanel; from < end; from += kChunk) {
    const int64_t count = std::min<int64_t>(kChunk, (end - from + kPanel - 1) / kPanel * kPanel);
    score(size, rows, head, span, row_position, from, count, scores);
    for (int r = 0; r < size; ++r) {
      Floats most = load(scores[r]);
      for (int64_t i = 16; i < count; i += 16) {
        most = larger(most, load(scores[r] + i));
      }
      const float before = largest[r];
      largest[r] = std::max(before, largest_of(most));
      // Nothing seen yet: weights of e^(-inf - 0) are 0, where -inf - -inf would be NaN.
      const float reference = largest[r] == kNone ? 0.0f : largest[r];
      Floats sum = zeros();
      for (int64_t i = 0; i < count; i += 16) {
        const Floats weight = exp_of(load(scores[r] + i) - all(reference));
        sum = sum + weight;
        store_row_pairs(weight, i / 2, r, size, count / 2, weights);
      }
      const float keep = before == largest[r] ? 1.0f : std::exp(before - reference);
      total[r] = total[r] * keep + sum_of(sum);
      if (keep == 1.0f) continue;
      for (int64_t d = 0; d < span.dim; d += kPanel) {
        float* at = sums_so_far + d * size + r * kPanel;
        for (int half = 0; half < 2; ++half) {
          const Floats old = load(at + 16 * half);
          store(at + 16 * half, old * all(keep));
        }
      }
    }
    for (int64_t d = 0; d < span.dim; d += kPanel) {
      float* at = sums_so_far + d * size;
      Floats sums[kRows][2];
      WINDROSE_UNROLL
      for (int r = 0; r < size; ++r) {
        sums[r][0] = load(at + r * kPanel);
        sums[r][1] = load(at + r * kPanel + 16);
      }
      const Pair* panel = head.values.data() + (d / kPanel * (span.padded / 2) + from / 2) * kPanel;
      multiply_onto(size, weights, panel, count / 2, sums, nothing);
      WINDROSE_UNROLL
      for (int r = 0; r < size; ++r) {
        store(at + r * kPanel, sums[r][0]);
        store(at + r * kPanel + 16, sums[r][1]);
      }
    }
  }
  for (int r = 0; r < size; ++r) {
    const Floats share = all(1.0f / total[r]);
    for (int64_t d = 0; d < span.dim; d += 16) {
      const float* from = sums_so_far + d / kPanel * kPanel * size + r * kPanel + d % kPanel;
      store_bf16(out + r * out_stride + d, load(from) * share);
    }
  }
}

}  // namespace

extern "C" {

// out[rows][heads * head_dim]: row r is position start + r of the sequence whose block ids are in
// `table`, and attends to the positions up to its own (and within its window; <= 0: none).
// query rows are `query_stride` apart. head_dim is a multiple of 32.
void windrose_prefill_attention(const bf16* query, int64_t query_stride, const bf16* cache,
                                const int64_t* table, int64_t start, int64_t rows,
                                int64_t num_heads, int64_t kv_heads, int64_t head_dim,
                                int64_t block_size, int64_t window, float scale, bf16* out,
                                int threads) {
  static thread_local PackedHead packed;
  const Cache layer{cache, kv_heads, head_dim, block_size};
  const int64_t group = num_heads / kv_heads;
  const int64_t end = start + rows;
  const int64_t padded = (end + kPanel - 1) / kPanel * kPanel;
  const Span span{start, window, padded, head_dim, scale};
  const int64_t first_panel = span.first_seen(start) / kPanel;
  const Blocks blocks(rows);
  PackedHead& head_here = packed;  // a helper's own `packed` is another one
  head_here.keys.fit(padded * head_dim / 2);
  head_here.values.fit(padded * head_dim / 2);
  for (int64_t head = 0; head < kv_heads; ++head) {
    pool().run(threads, padded / kPanel - first_panel, 4, [&](int64_t p) {
      pack_positions(layer, table, head, (first_panel + p) * kPanel, end, padded, head_here);
    });
    pool().run(threads, group * blocks.count, 1, [&](int64_t task) {
      static thread_local Room<RowPair> room;
      RowPair* const rows_here = room.fit(kMaxBlockRows * head_dim / 2);
      const int64_t h = head * group + task / blocks.count;
      // The last rows see most: with them first, the threads end together.
      const int64_t block = blocks.count - 1 - task % blocks.count;
      const int64_t first = blocks.first(block);
      const int size = blocks.size(block);
      pack_rows(query + first * query_stride + h * head_dim, query_stride, nullptr, size,
                head_dim / 2, rows_here);
      with_rows(size, [&](auto count) {
        attend(count, rows_here, head_here, span, start + first,
               out + (first * num_heads + h) * head_dim, num_heads * head_dim);
      });
    });
  }
}

}  // extern "C"
