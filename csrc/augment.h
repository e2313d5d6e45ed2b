// augment: views of images, each pixel of a view in one go:
//   (X, Y) = geometry (x, y, 1), the place in the image of the view's pixel (x, y); centres at whole numbers
//   v_c = sum_ij w((i - Y) / s_y) w((j - X) / s_x) pixel_c(i, j) / sum_ij w w,  w(t) = max(0, 1 - |t|),
//     s_x = max(1, |(m00, m01)|), s_y = max(1, |(m10, m11)|): bilinear, and antialiased where it makes
//     smaller
//   u_c = sum_k color_ck v_k + color_c,channels, then clamped to 0..1; v where there is no colour
//   view_c = (u_c - mean_c) / std_c, and (fill_c - mean_c) / std_c in the erased rectangle
// A pixel of a uint8 image counts pixel / 255. Shifts and flips by whole pixels copy. A matrix with a number
// that is not finite, with |(m00, m01)| or |(m10, m11)| past kWidest or with places past kFarthest gives NaN.
#pragma once
#include <cstdint>

#include "dtype.h"
#include "kernel.h"

namespace mtk {

constexpr int kMaxChannels = 4;
constexpr int64_t kMaxSide = 1 << 20;       // of images and views: fp32 tells places apart
constexpr double kFarthest = 1 << 22;       // |m00| (width - 1) + |m01| (height - 1) + |m02|, of the view
constexpr double kWidest = 256;             // half-width of the filter
constexpr double kPlain = 1 + 1.0 / 65536;  // s below it is 1: a rotation's rounding asks for no third pixel

// What stands beyond the edge: a number; or for the row abcd: dcb abcd cba; dcba abcd dcba; aaa abcd ddd.
enum class Border : int32_t { constant, reflect, symmetric, replicate };

struct Augment {
  const void* images;  // [samples, channels, height, width]
  bool bytes;          // uint8, else fp32
  int64_t channels, height, width;
  int64_t sample_stride, channel_stride, row_stride, column_stride;  // in elements
  const void* index;                                                 // [rows]; null: 0, 1, 2 ...
  bool wide_index;                                                   // int64, else int32
  int64_t index_stride;
  const float* geometry;  // [views, rows, 2, 3]
  const float* color;     // [views, rows, channels, channels + 1], or null
  bool clamp;
  const int32_t* erase;  // [views, rows, 4]: top, left, height, width; or null
  Border border;
  double fill[kMaxChannels], mean[kMaxChannels], std[kMaxChannels];  // where pixels are 0..1
  void* view;  // [views, rows, channels, view_height, view_width], or with the channels last; no gaps
  Dtype dtype;
  bool channels_last;
  int64_t views, rows, view_height, view_width;
  int device;
  void* stream;
};

void augment_cpu(const Augment& args);
constexpr Kernel<Augment> augment_cuda = nullptr;  // on a GPU the kernel is Triton's

}  // namespace mtk
