// Building the table: cutting long tensors into chunks.
#include "plan.h"

#include <algorithm>

namespace mtk {
namespace {

constexpr int64_t kChunkStep =
    2048;  // chunks are a multiple of it, so that their starts keep a tensor's alignment and random numbers

}  // namespace

Row* Plan::add() {
  const size_t width = 4 + 2 * static_cast<size_t>(averages);
  words.resize(words.size() + width);
  return reinterpret_cast<Row*>(words.data() + words.size() - width);
}

Plan Plan::chunks(int64_t target_rows) const {
  const Table rows = table();
  const int64_t wanted = (count + target_rows - 1) / std::max<int64_t>(target_rows, 1);
  const int64_t chunk = std::max(kChunkStep, (wanted + kChunkStep - 1) / kChunkStep * kChunkStep);
  Plan chunked;
  chunked.averages = averages;
  chunked.count = count;
  chunked.words.reserve(static_cast<size_t>((rows.n_rows + count / chunk) * rows.width()));
  for (int64_t i = 0; i < rows.n_rows; ++i) {
    const Row& row = rows.row(i);
    const int64_t dst_size = bytes_per_count(row.code, true), src_size = bytes_per_count(row.code, false);
    for (int64_t start = 0; start < row.count; start += chunk) {
      Row* cut = chunked.add();
      *cut = {row.src + start * src_size, std::min(chunk, row.count - start), row.code, row.first + start};
      Target* targets = reinterpret_cast<Target*>(cut + 1);
      for (int k = 0; k < averages; ++k) {
        const Target& whole = rows.targets(i)[k];
        targets[k] = {whole.dst + start * dst_size, whole.low ? whole.low + start * 2 : 0};
      }
    }
  }
  return chunked;
}

}  // namespace mtk
