// The loops over the pixels of a row that the CPU's augment is made of: leaf functions, with clones for each
// instruction set.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "augment.h"
#include "cpu.h"

namespace mtk {

template <class S>
struct Image {
  const S* data;
  int64_t channels, height, width;
  int64_t channel_stride, row_stride, column_stride;
  Border border;
  float fill[kMaxChannels];  // in the image's own unit

  MTK_INLINE const S* at(int64_t c, int64_t y, int64_t x) const {
    return data + c * channel_stride + y * row_stride + x * column_stride;
  }
  // Whether the channels of a row's pixels lie together.
  bool interleaved() const { return channels > 1 && channel_stride == 1 && column_stride == channels; }
};

// Where on an axis of `size` pixels the pixel `at` is found; -1: it is the border's constant.
inline int32_t within(int64_t at, int64_t size, Border border) {
  if (at >= 0 && at < size) return static_cast<int32_t>(at);
  if (border == Border::constant) return -1;
  if (border == Border::replicate) return static_cast<int32_t>(at < 0 ? 0 : size - 1);
  const int64_t repeated = border == Border::symmetric ? 1 : 0;  // the edge is met twice
  const int64_t period = std::max<int64_t>(1, 2 * (size - 1 + repeated));
  const int64_t in_period = (at % period + period) % period;
  return static_cast<int32_t>(in_period < size ? in_period : period - in_period - repeated);
}

// The `count` pixels of one axis that make the value at `place`, and their weights, each `stride` apart.
inline void taps_at(double place, double half_width, int count, int64_t size, Border border, int32_t* at,
                    float* weights, int64_t stride) {
  const double first = std::floor(place - half_width) + 1, inverse = 1 / half_width;
  double total = 0;
  for (int i = 0; i < count; ++i) {
    const double weight = std::max(0.0, 1 - std::fabs(first + i - place) * inverse);
    total += weight;
    weights[i * stride] = static_cast<float>(weight);
    at[i * stride] = within(static_cast<int64_t>(first) + i, size, border);
  }
  for (int i = 0; i < count; ++i) weights[i * stride] = static_cast<float>(weights[i * stride] / total);
}

struct Normal {
  float center, scale;
};

template <class S, class T>
MTK_INLINE void normalize_one(const S* from, Normal normal, T* to) {
  store(to, (static_cast<float>(*from) - normal.center) * normal.scale);
}

constexpr int64_t kChunk = 16;

// kFrom, kTo: strides that the compiler knows; 0: one that it does not. In chunks of a known length, of which
// the last may overlap the one before: rows of small images are little else than a remainder (of 32 pixels
// shifted by a few: 3 times as fast).
template <int kFrom, int kTo, class S, class T>
MTK_INLINE void normalize_run(const S* from, int64_t from_stride, int64_t count, Normal normal, T* to,
                              int64_t to_stride) {
  if (kFrom) from_stride = kFrom;
  if (kTo) to_stride = kTo;
  if (count < kChunk) {
    for (int64_t x = 0; x < count; ++x) normalize_one(from + x * from_stride, normal, to + x * to_stride);
    return;
  }
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t x = std::min(begin, count - kChunk);
#pragma omp simd
    for (int64_t i = x; i < x + kChunk; ++i)
      normalize_one(from + i * from_stride, normal, to + i * to_stride);
  }
}

template <class T>
MTK_CPU_CLONES static void normalize(const float* from, int64_t count, Normal normal, T* to,
                                     int64_t to_stride) {
  to_stride == 1 ? normalize_run<1, 1>(from, 1, count, normal, to, 1)
                 : normalize_run<1, 0>(from, 1, count, normal, to, to_stride);
}

// A shift or flip: columns and rows of the image for those of the view, -1 the border's constant. Columns
// [begin, end) of the view lie in the image, from `first` on in steps of 1 or -1.
struct Copy {
  const int32_t *columns, *rows;
  int64_t width, begin, end, first, step;
};

// Rows [top, bottom) of the view.
template <class S, class T>
MTK_CPU_CLONES static void copy_plane(const Image<S>& image, int64_t c, const Copy& copy, int64_t top,
                                      int64_t bottom, T* to, int64_t to_stride, Normal normal) {
  const int64_t stride = image.column_stride, step = stride * copy.step, inside = copy.end - copy.begin;
  T fill;
  store(&fill, (image.fill[c] - normal.center) * normal.scale);
  for (int64_t y = top; y < bottom; ++y, to += copy.width * to_stride) {
    if (copy.rows[y] < 0) {
      for (int64_t x = 0; x < copy.width; ++x) to[x * to_stride] = fill;
      continue;
    }
    const S* const row = image.at(c, copy.rows[y], 0);
    const S* const from = row + copy.first * stride;
    T* const middle = to + copy.begin * to_stride;
    if (to_stride == 1 && step == 1) {
      normalize_run<1, 1>(from, 1, inside, normal, middle, 1);
    } else if (to_stride == 1 && step == -1) {
      normalize_run<-1, 1>(from, -1, inside, normal, middle, 1);
    } else {
      normalize_run<0, 0>(from, step, inside, normal, middle, to_stride);
    }
    for (int64_t x = copy.begin == 0 ? copy.end : 0; x < copy.width;
         x = x + 1 == copy.begin ? copy.end : x + 1) {
      if (copy.columns[x] < 0) {
        to[x * to_stride] = fill;
      } else {
        normalize_one(row + copy.columns[x] * stride, normal, to + x * to_stride);
      }
    }
  }
}

// The filter's rows for one row of the view, and which elements of them.
struct Line {
  const int32_t* rows;
  const float* weights;
  int count;
  int64_t begin, end;
};

// In chunks, as normalize_run.
template <int kStride, bool kFirst, class S>
MTK_INLINE void add_row(const S* from, int64_t stride, float weight, int64_t begin, int64_t end, float* to) {
  const auto add = [&](int64_t x) __attribute__((always_inline)) {
    const float term = weight * static_cast<float>(from[kStride ? x : x * stride]);
    to[x] = kFirst ? term : to[x] + term;
  };
  for (; end - begin >= kChunk; begin += kChunk) {
#pragma omp simd
    for (int64_t x = begin; x < begin + kChunk; ++x) add(x);
  }
  for (; begin < end; ++begin) add(begin);
}

// to[x] = the weighted sum of the rows' elements x: of channel c, or where channels lie together of all.
template <class S>
MTK_CPU_CLONES static void sum_rows(const Image<S>& image, int64_t c, const Line& line, float* to) {
  const int64_t stride = image.interleaved() ? 1 : image.column_stride;
  float outside = 0;
  bool first = true;
  for (int j = 0; j < line.count; ++j) {
    if (line.rows[j] < 0) {
      outside += line.weights[j];
    } else if (line.weights[j] != 0) {
      const S* const row = image.at(c, line.rows[j], 0);
      const float weight = line.weights[j];
      if (stride == 1 && first) add_row<1, true>(row, 1, weight, line.begin, line.end, to);
      if (stride == 1 && !first) add_row<1, false>(row, 1, weight, line.begin, line.end, to);
      if (stride != 1 && first) add_row<0, true>(row, stride, weight, line.begin, line.end, to);
      if (stride != 1 && !first) add_row<0, false>(row, stride, weight, line.begin, line.end, to);
      first = false;
    }
  }
  if (first) std::fill(to + line.begin, to + line.end, 0.0f);
  if (outside == 0) return;
  const int64_t channels = image.interleaved() ? image.channels : 1;
  for (int64_t x = line.begin; x < line.end; ++x)
    to[x] += outside * image.fill[channels > 1 ? x % channels : c];
}

// to[x] = sum_i weights[i, x] line[at[i, x]], of [taps, width].
MTK_CPU_CLONES static void sum_columns(const float* line, const int32_t* at, const float* weights, int taps,
                                       int64_t width, float* to) {
#pragma omp simd
  for (int64_t x = 0; x < width; ++x) to[x] = weights[x] * line[at[x]];
  for (int i = 1; i < taps; ++i) {
    at += width, weights += width;
#pragma omp simd
    for (int64_t x = 0; x < width; ++x) to[x] += weights[x] * line[at[x]];
  }
}

// The places of a row of the view: x + x_step * column, y + y_step * column.
struct Slant {
  float x_step, x, y_step, y;
};

using Pixel = float __attribute__((vector_size(16)));
static_assert(sizeof(Pixel) == kMaxChannels * sizeof(float), "a pixel has all channels");

// An image whose pixels have their channels together, and after them one of the fill.
template <class S>
MTK_CPU_CLONES static void pack(const Image<S>& image, Pixel* to) {
  const int64_t stride = image.column_stride, width = image.width;
  for (int64_t c = 0; c < image.channels; ++c) {
    for (int64_t y = 0; y < image.height; ++y) {
      const S* const from = image.at(c, y, 0);
      for (int64_t x = 0; x < width; ++x) to[y * width + x][c] = static_cast<float>(from[x * stride]);
    }
    to[image.height * width][c] = image.fill[c];
  }
}

// Where pixels are found, by look-up, from one image before the first to one after the last: the one at (i,
// j) is pixels[rows[i] + columns[j]], and the fill where either is negative.
struct Packed {
  const Pixel* pixels;
  const int32_t *columns, *rows;
  int32_t height, width;
};

MTK_INLINE int32_t floor_of(float x) {
  const auto whole = static_cast<int32_t>(x);
  return whole - (x < static_cast<float>(whole));
}

template <int C>
MTK_INLINE int64_t bilinear_run(const Packed& image, const Slant& slant, int64_t x, int64_t width, float* to,
                                int64_t plane) {
  const auto image_width = static_cast<float>(image.width), image_height = static_cast<float>(image.height);
  const int32_t fill = image.height * image.width;
  const auto pixel = [&](int32_t row, int32_t column) __attribute__((always_inline)) {
    return image.pixels[(row | column) < 0 ? fill : row + column];
  };
  for (; x < width; ++x) {
    const auto along = static_cast<float>(x);
    const float px = slant.x_step * along + slant.x, py = slant.y_step * along + slant.y;
    if (!(px >= -image_width && px < 2 * image_width - 1)) break;
    if (!(py >= -image_height && py < 2 * image_height - 1)) break;
    const int32_t left = floor_of(px), top = floor_of(py);
    const float wx = px - static_cast<float>(left), wy = py - static_cast<float>(top);
    const int32_t x0 = image.columns[left], x1 = image.columns[left + 1];
    const int32_t y0 = image.rows[top], y1 = image.rows[top + 1];
    const Pixel a = pixel(y0, x0), b = pixel(y0, x1), d = pixel(y1, x0), e = pixel(y1, x1);
    const Pixel upper = a + wx * (b - a), lower = d + wx * (e - d);
    const Pixel found = upper + wy * (lower - upper);
    for (int c = 0; c < C; ++c) to[c * plane + x] = found[c];
  }
  return x;
}

// Bilinear from column x on, up to a place that Packed does not know; gives that column.
MTK_CPU_CLONES static int64_t bilinear(const Packed& image, int64_t channels, const Slant& slant, int64_t x,
                                       int64_t width, float* to, int64_t plane) {
  return channels == 1   ? bilinear_run<1>(image, slant, x, width, to, plane)
         : channels == 2 ? bilinear_run<2>(image, slant, x, width, to, plane)
         : channels == 3 ? bilinear_run<3>(image, slant, x, width, to, plane)
                         : bilinear_run<4>(image, slant, x, width, to, plane);
}

struct Color {
  float* planes;
  int64_t plane, pixels;
  const float* matrix;  // [channels, channels + 1]
  float unit;           // what the planes are multiplied by
  bool clamp;
};

template <int C>
MTK_CPU_CLONES static void mix(const Color& color) {
  float matrix[C][C + 1];
  for (int c = 0; c < C; ++c) {
    for (int k = 0; k <= C; ++k) matrix[c][k] = color.matrix[c * (C + 1) + k] * (k < C ? color.unit : 1.0f);
  }
  float* const planes = color.planes;
  const int64_t plane = color.plane;
  const float least = color.clamp ? 0.0f : -std::numeric_limits<float>::infinity();
  const float most = color.clamp ? 1.0f : std::numeric_limits<float>::infinity();
#pragma omp simd
  for (int64_t i = 0; i < color.pixels; ++i) {
    float pixel[C];
    for (int k = 0; k < C; ++k) pixel[k] = planes[k * plane + i];
    for (int c = 0; c < C; ++c) {
      float sum = matrix[c][C];
      for (int k = 0; k < C; ++k) sum += matrix[c][k] * pixel[k];
      sum = sum < least ? least : sum;  // NaN stays
      planes[c * plane + i] = sum > most ? most : sum;
    }
  }
}

}  // namespace mtk
