// What a layer does to decoding rows before its experts, in one call.
#include <vector>

#include "kernels.h"

using namespace windrose;

namespace {

// The layer's weights, all packed but the norms'. model/cpu_kernels/decode_layer.py has the same three.
struct Layer {
  const bf16* input_norm;
  const uint8_t* qkv;
  const uint8_t* o;
  const bf16* ffn_norm;
  const uint8_t* gate;  // null in a dense model
  int32_t qkv_bits;
  int32_t o_bits;
};

// What is the same for all layers.
struct Shape {
  int64_t width;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t experts;
  int64_t top_k;
  int64_t window;  // <= 0: none
  float scale;     // of attention's scores
  float eps;
};

// One step's rows.
struct Rows {
  int64_t count;
  const bf16* cos;
  const bf16* sin;
  const int64_t* slots;
  const int64_t* tables;
  int64_t table_stride;
  const int64_t* lengths;
  int64_t block_size;
};

// x += y, each sum rounded to bf16.
void add(bf16* x, const bf16* y, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    store_bf16(x + i, load_bf16(x + i) + load_bf16(y + i));
  }
  if (i == count) return;
  const int64_t rest = count - i;
  store_bf16(x + i, load_bf16(x + i, rest) + load_bf16(y + i, rest), rest);
}

// Room for `count` values that lives as long as its thread.
bf16* room(std::vector<bf16>& buffer, int64_t count) {
  if (buffer.size() < size_t(count)) buffer.resize(count);
  return buffer.data();
}

}  // namespace

extern "C" {

// x[rows, width] += added (null: nothing), what the layer before ends with; then x += attention
// over `cache`, into which the rows' keys and values go. normed: the rows for the feed-forward
// part. ids and weights [rows, top_k]: the choice of the gate, if there is one. Every part is that
// of the function of its name, so the results are the same bits.
void windrose_decode_layer(const Shape* shape, const Layer* layer, const Rows* rows, bf16* cache,
                           bf16* x, const bf16* added, bf16* normed, int64_t* ids, float* weights,
                           int threads) {
  static thread_local std::vector<bf16> heads_room, attended_room, out_room;
  const int64_t count = rows->count, width = shape->width, dim = shape->head_dim;
  const int64_t all_heads = shape->heads + 2 * shape->kv_heads;
  bf16* const heads = room(heads_room, count * all_heads * dim);
  bf16* const attended = room(attended_room, count * shape->heads * dim);
  bf16* const out = room(out_room, count * (width > shape->experts ? width : shape->experts));

  if (added) add(x, added, count * width);
  windrose_rms_norm(x, layer->input_norm, normed, count, width, shape->eps);
  windrose_linear(normed, width, layer->qkv, layer->qkv_bits, heads, count, width,
                  all_heads * dim, threads);
  windrose_rotate_and_store(heads, rows->cos, rows->sin, cache, rows->slots, count, shape->heads,
                            shape->kv_heads, dim);
  windrose_decode_attention(heads, all_heads * dim, cache, rows->tables, rows->table_stride,
                            rows->lengths, count, shape->heads, shape->kv_heads, dim,
                            rows->block_size, shape->window, shape->scale, attended, threads);
  windrose_linear(attended, shape->heads * dim, layer->o, layer->o_bits, out, count,
                  shape->heads * dim, width, threads);
  add(x, out, count * width);
  windrose_rms_norm(x, layer->ffn_norm, normed, count, width, shape->eps);
  if (!layer->gate) return;
  windrose_linear(normed, width, layer->gate, 16, out, count, width, shape->experts, threads);
  windrose_top_k(out, ids, weights, count, shape->experts, shape->top_k);
}

}  // extern "C"
