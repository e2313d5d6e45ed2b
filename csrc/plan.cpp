// Building the table: choosing each row's code and cutting long tensors into chunks.
#include "plan.h"

#include <algorithm>

namespace mtk {
namespace {

constexpr int64_t kChunkStep =
    2048;  // chunks are a multiple of it, so that their starts keep a tensor's alignment

int64_t bytes_per_count(int64_t code, bool dst) {
  if (code == kCopyBytes) return 1;
  if (code == kCopyWords) return 4;
  const int64_t pair = code % (kDtypes * kDtypes);
  return size_of(static_cast<Dtype>(dst ? pair / kDtypes : pair % kDtypes));
}

}  // namespace

Row float_row(Action action, void* dst, Dtype dst_dtype, const void* src, Dtype src_dtype, int64_t count) {
  if (action == kConvert && dst_dtype == src_dtype) return copy_row(dst, src, count * size_of(dst_dtype));
  return {reinterpret_cast<uint64_t>(dst), reinterpret_cast<uint64_t>(src), count,
          row_code(action, dst_dtype, src_dtype)};
}

Row copy_row(void* dst, const void* src, int64_t bytes) {
  const uint64_t to = reinterpret_cast<uint64_t>(dst), from = reinterpret_cast<uint64_t>(src);
  const bool words = ((to | from | static_cast<uint64_t>(bytes)) & 3) == 0;
  return {to, from, words ? bytes / 4 : bytes, words ? kCopyWords : kCopyBytes};
}

std::vector<Row> Plan::chunks(int64_t target_rows) const {
  const int64_t wanted = (count + target_rows - 1) / std::max<int64_t>(target_rows, 1);
  const int64_t chunk = std::max(kChunkStep, (wanted + kChunkStep - 1) / kChunkStep * kChunkStep);
  std::vector<Row> chunked;
  chunked.reserve(rows.size() + static_cast<size_t>(count / chunk));
  for (const Row& row : rows) {
    const int64_t dst_size = bytes_per_count(row.code, true), src_size = bytes_per_count(row.code, false);
    for (int64_t start = 0; start < row.count; start += chunk) {
      chunked.push_back({row.dst + start * dst_size, row.src + start * src_size,
                         std::min(chunk, row.count - start), row.code});
    }
  }
  return chunked;
}

}  // namespace mtk
