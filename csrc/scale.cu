// scale on CUDA. Every block reads the factor; where it is 1 that is all that happens.
#include "scale.h"

#include <algorithm>

#include "launch.cuh"

namespace mtk {
namespace {

constexpr const char* kOp = "scale_";
constexpr int kThreads = 256;
constexpr int64_t kBlocksPerSm = 8;
constexpr int kBatch = 4;  // packs that a thread loads before it uses the first

template <class T>
__global__ void __launch_bounds__(kThreads) scale_kernel(Scale args) {
  using Acc = Accumulator<T, float>;
  constexpr int N = 16 / sizeof(T);
  const double number = read_number(args.factor, args.factor_dtype);
  if (number == 1) return;
  const Acc factor = static_cast<Acc>(number);
  const auto multiply = [factor](T& x) { x = narrowed<T>(widened<Acc>(x) * factor); };

  T* data = static_cast<T*>(args.data);
  const int64_t to_alignment = elements_to_alignment<N>(data);
  const int64_t head = to_alignment < args.count ? to_alignment : args.count;
  const int64_t packs = (args.count - head) / N;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t edge = thread < head ? thread : thread + packs * N;
  if (edge < args.count) multiply(data[edge]);
  for (int64_t first = thread; first < packs; first += kBatch * threads) {
    WordsOf<T, N> words[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (first + k * threads < packs) words[k] = load_words<N>(data + head + (first + k * threads) * N);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (first + k * threads >= packs) continue;
      Pack<T, N> x = unpack<T, N>(words[k]);
#pragma unroll
      for (int i = 0; i < N; ++i) multiply(x.at[i]);
      store_pack(data + head + (first + k * threads) * N, x);
    }
  }
}

template <class T>
void scale_as(const Scale& args) {
  const int64_t wanted = ceil_div(args.count, kThreads * (16 / static_cast<int64_t>(sizeof(T))));
  const int64_t most = kBlocksPerSm * device_limits(args.device, kOp).sms;
  launch(kOp, scale_kernel<T>, {std::min(wanted, most), kThreads, 0, args.stream}, args);
}

}  // namespace

void scale_cuda(const Scale& args) {
  if (args.count == 0) return;
  const DeviceGuard guard(args.device, kOp);
  switch (args.dtype) {
    case Dtype::f32:
      return scale_as<float>(args);
    case Dtype::f64:
      return scale_as<double>(args);
    case Dtype::f16:
      return scale_as<half_bits>(args);
    case Dtype::bf16:
      return scale_as<bfloat16_bits>(args);
  }
}

}  // namespace mtk
