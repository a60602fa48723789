// Rotary embedding with the cache write, and attention of decoding rows over the paged cache.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "matmul.h"
#include "paged_cache.h"
#include "pool.h"

using namespace windrose;

namespace {

constexpr int kChunk = 16;       // positions at once: one score per lane
constexpr int kMaxQueries = 4;   // of one key-value head at once

// Running softmax of one query: largest score, sum of weights; `out` is the weighted sum so far.
struct Running {
  float largest;
  float sum;
};

// Some positions of a sequence, by their slots in the cache.
struct Chunk {
  const bf16* slots[kChunk];
  int count;
};

// Asks memory for some heads of a chunk while the one before is taken in, piece after piece in the
// order they lie in: all of it at once is more than a core can wait for. What does not fit into the
// first cache beside the chunk before goes into the second.
class Asking {
 public:
  Asking(const Chunk& chunk, const Cache& cache, int64_t first_head, int64_t end_head)
      : chunk_(chunk), cache_(cache), first_head_(first_head), end_head_(end_head) {}

  // For the next head's key and value.
  void operator()() {
    if (position_ >= chunk_.count) return;
    const bf16* key = chunk_.slots[position_] + head_ * cache_.head_dim;
    const bf16* value = key + cache_.kv_heads * cache_.head_dim;
    constexpr int64_t kFirstCache = 32 << 10;
    const int64_t values = 2 * kChunk * (end_head_ - first_head_) * cache_.head_dim;
    if (values * int64_t(sizeof(bf16)) <= kFirstCache / 2) {
      ask<_MM_HINT_NTA>(key, value);
    } else {
      ask<_MM_HINT_T1>(key, value);
    }
    if (++head_ < end_head_) return;
    head_ = first_head_;
    ++position_;
  }

 private:
  template <auto HINT>
  void ask(const bf16* key, const bf16* value) const {
    constexpr int64_t kLine = 32;  // bf16 in a cache line
    for (int64_t d = 0; d < cache_.head_dim; d += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(key + d), HINT);
      _mm_prefetch(reinterpret_cast<const char*>(value + d), HINT);
    }
  }

  const Chunk& chunk_;
  const Cache& cache_;
  const int64_t first_head_, end_head_;
  int64_t head_ = first_head_;
  int position_ = 0;
};

// Takes in a chunk for QUERIES queries of one key-value head.
template <int QUERIES>
void take_in(const bf16* query, const Chunk& chunk, Asking& ask_for_next, const Cache& cache,
             int64_t head, float scale, Running* running, float* out) {
  const int64_t dim = cache.head_dim;
  const bf16* const* const slots = chunk.slots;
  const int count = chunk.count;
  alignas(64) float scores[QUERIES][kChunk];
  for (int s = 0; s < count; ++s) {
    ask_for_next();
    const bf16* key = slots[s] + head * dim;
    Floats sums[QUERIES];
    for (int q = 0; q < QUERIES; ++q) sums[q] = zeros();
    for (int64_t d = 0; d < dim; d += 32) {
      const Pairs k = load_pairs(key + d);
#pragma GCC unroll 4
      for (int q = 0; q < QUERIES; ++q) {
        const Pairs x = load_pairs(query + q * dim + d);
        sums[q] = dot(sums[q], x, k);
      }
    }
    for (int q = 0; q < QUERIES; ++q) scores[q][s] = sum_of(sums[q]);
  }
  const Lanes valid = first_lanes(count);
  const float lowest = -std::numeric_limits<float>::infinity();
  for (int q = 0; q < QUERIES; ++q) {
    const Floats scaled = select(valid, load(scores[q]) * all(scale), all(lowest));
    const float before = running[q].largest;
    const float largest = std::fmax(before, largest_of(scaled));
    const Floats weights = select(valid, exp_of(scaled - all(largest)), zeros());
    store(scores[q], weights);
    const float keep = before == largest ? 1.0f : std::exp(before - largest);
    running[q].sum = running[q].sum * keep + sum_of(weights);
    running[q].largest = largest;
    if (keep != 1.0f) {
      for (int64_t d = 0; d < dim; d += 16) {
        float* at = out + q * dim + d;
        store(at, load(at) * all(keep));
      }
    }
  }
  for (int64_t d = 0; d < dim; d += 32) {
    Floats sums[QUERIES][2];
#pragma GCC unroll 4
    for (int q = 0; q < QUERIES; ++q) {
      sums[q][0] = load(out + q * dim + d);
      sums[q][1] = load(out + q * dim + d + 16);
    }
    for (int s = 0; s < count; ++s) {
      const bf16* value = slots[s] + (cache.kv_heads + head) * dim + d;
      const Floats low = load_bf16(value);
      const Floats high = load_bf16(value + 16);
#pragma GCC unroll 4
      for (int q = 0; q < QUERIES; ++q) {
        const Floats weight = all(scores[q][s]);
        sums[q][0] = fma(weight, low, sums[q][0]);
        sums[q][1] = fma(weight, high, sums[q][1]);
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < QUERIES; ++q) {
      store(out + q * dim + d, sums[q][0]);
      store(out + q * dim + d + 16, sums[q][1]);
    }
  }
}

void take_in_any(int queries, const bf16* query, const Chunk& chunk, Asking& next,
                 const Cache& cache, int64_t head, float scale, Running* running, float* out) {
  switch (queries) {
    case 1: return take_in<1>(query, chunk, next, cache, head, scale, running, out);
    case 2: return take_in<2>(query, chunk, next, cache, head, scale, running, out);
    case 3: return take_in<3>(query, chunk, next, cache, head, scale, running, out);
    default: return take_in<4>(query, chunk, next, cache, head, scale, running, out);
  }
}

}  // namespace

extern "C" {

// Turns the query and key heads of each row in place (half-split rotary) and stores keys and
// values at the row's slot. heads: [rows][heads + 2 * kv_heads][head_dim]; cos and sin:
// [rows][head_dim], sin signed; cache: one layer's slots. head_dim is a multiple of 32.
void windrose_rotate_and_store(bf16* heads, const bf16* cos, const bf16* sin, bf16* cache,
                               const int64_t* slots, int64_t rows, int64_t num_heads,
                               int64_t kv_heads, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  const int64_t stored = 2 * kv_heads * head_dim;
  for (int64_t r = 0; r < rows; ++r) {
    bf16* row = heads + r * (num_heads + 2 * kv_heads) * head_dim;
    const bf16* c = cos + r * head_dim;
    const bf16* s = sin + r * head_dim;
    for (int64_t h = 0; h < num_heads + kv_heads; ++h) {
      bf16* x = row + h * head_dim;
      for (int64_t i = 0; i < half; i += 16) {
        const Floats a = load_bf16(x + i);
        const Floats b = load_bf16(x + half + i);
        const Floats left = fma(b, load_bf16(s + i), a * load_bf16(c + i));
        const Floats right = fma(a, load_bf16(s + half + i), b * load_bf16(c + half + i));
        store_bf16(x + i, left);
        store_bf16(x + half + i, right);
      }
    }
    std::memcpy(cache + slots[r] * stored, row + num_heads * head_dim, stored * sizeof(bf16));
  }
}

// out[rows][heads * head_dim]: each row attends to positions max(0, length - window) .. length - 1
// of its own sequence. query rows are `query_stride` apart; tables: [rows][table_stride] block
// ids; window <= 0: none. head_dim is a multiple of 32.
void windrose_decode_attention(const bf16* query, int64_t query_stride, const bf16* cache,
                               const int64_t* tables, int64_t table_stride,
                               const int64_t* lengths, int64_t rows, int64_t num_heads,
                               int64_t kv_heads, int64_t head_dim, int64_t block_size,
                               int64_t window, float scale, bf16* out, int threads) {
  const Cache layer{cache, kv_heads, head_dim, block_size};
  const int64_t group = num_heads / kv_heads;
  // A sequence's heads stay together, as its cache lies; few sequences are split by heads.
  int64_t parts = (4 * threads + rows - 1) / rows;
  if (parts > kv_heads || threads == 1) parts = threads == 1 ? 1 : kv_heads;
  pool().run(threads, rows * parts, 1, [&](int64_t task) {
    static thread_local std::vector<float> sums;
    static thread_local std::vector<Running> running;
    const int64_t row = task / parts, part = task % parts;
    const int64_t first_head = kv_heads * part / parts;
    const int64_t end_head = kv_heads * (part + 1) / parts;
    const bf16* queries = query + row * query_stride;
    const int64_t length = lengths[row];
    sums.assign(num_heads * head_dim, 0.0f);
    running.assign(num_heads, {-std::numeric_limits<float>::infinity(), 0.0f});
    int64_t position = window > 0 && length > window ? length - window : 0;
    Chunk chunks[2];  // this one and the next one
    const auto find = [&](int64_t from, Chunk& chunk) {
      chunk.count = int(std::clamp<int64_t>(length - from, 0, kChunk));
      for (int s = 0; s < chunk.count; ++s) {
        chunk.slots[s] = layer.slot(tables + row * table_stride, from + s);
      }
    };
    find(position, chunks[0]);
    for (int turn = 0; chunks[turn].count > 0; turn ^= 1, position += kChunk) {
      find(position + kChunk, chunks[turn ^ 1]);
      Asking next(chunks[turn ^ 1], layer, first_head, end_head);
      for (int64_t head = first_head; head < end_head; ++head) {
        for (int64_t q = 0; q < group; q += kMaxQueries) {
          const int64_t h = head * group + q;
          const int some = int(group - q < kMaxQueries ? group - q : kMaxQueries);
          take_in_any(some, queries + h * head_dim, chunks[turn], next, layer, head, scale,
                      running.data() + h, sums.data() + h * head_dim);
        }
      }
    }
    for (int64_t h = first_head * group; h < end_head * group; ++h) {
      const Floats share = all(1.0f / running[h].sum);
      for (int64_t d = 0; d < head_dim; d += 16) {
        const Floats total = load(sums.data() + h * head_dim + d);
        store_bf16(out + (row * num_heads + h) * head_dim + d, total * share);
      }
    }
  });
}

}  // extern "C"
