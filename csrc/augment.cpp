// augment on the CPU: shifts and flips without colour go from the image to the view in one loop; the others
// by way of bands of rows in scratch memory, one plane a channel, where pixels are as the image has them.
#include "augment.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "augment_rows.h"

namespace mtk {
namespace {

constexpr int64_t kBandPixels = 2048;            // 32 kB of four channels
constexpr int64_t kPackedPixels = 1 << 18;       // 4 MB a thread
constexpr int64_t kValuesPerThread = 16 * 1024;  // fewer do not pay for one more thread

enum class Path { nothing, copy, axes, any };

// A matrix as the kernel sees it.
struct Geometry {
  double m[6];
  double half_x, half_y;  // widths of the filter
  int taps_x, taps_y;
  Path path;
};

Geometry read_geometry(const float* matrix, const Augment& args) {
  Geometry g{};
  std::copy_n(matrix, 6, g.m);
  const double* const m = g.m;
  const double right = static_cast<double>(args.view_width - 1),
               down = static_cast<double>(args.view_height - 1);
  const double far_x = std::fabs(m[0]) * right + std::fabs(m[1]) * down + std::fabs(m[2]);
  const double far_y = std::fabs(m[3]) * right + std::fabs(m[4]) * down + std::fabs(m[5]);
  const double wide_x = std::hypot(m[0], m[1]), wide_y = std::hypot(m[3], m[4]);
  if (!(far_x <= kFarthest && far_y <= kFarthest && wide_x <= kWidest && wide_y <= kWidest)) return g;
  g.half_x = wide_x < kPlain ? 1 : wide_x, g.half_y = wide_y < kPlain ? 1 : wide_y;
  g.taps_x = static_cast<int>(std::ceil(2 * g.half_x)), g.taps_y = static_cast<int>(std::ceil(2 * g.half_y));
  const bool upright = m[1] == 0 && m[3] == 0;
  const bool whole = std::floor(m[2]) == m[2] && std::floor(m[5]) == m[5];
  const bool copy = upright && whole && std::fabs(m[0]) == 1 && std::fabs(m[4]) == 1;
  g.path = copy ? Path::copy : upright ? Path::axes : Path::any;
  return g;
}

// Whether a view is made from its image's packed pixels: plain bilinear, where these are no burden.
bool is_packed(const Geometry& g, const Augment& args) {
  return g.path == Path::any && g.half_x == 1 && g.half_y == 1 && args.height * args.width <= kPackedPixels;
}

// What a call asks of the scratch memory.
struct Needs {
  int64_t taps_x = 1, taps_y = 1;
  bool packed = false;                 // images as Packed
  std::vector<int32_t> columns, rows;  // its look-ups

  explicit Needs(const Augment& args) {
    for (int64_t at = 0; at < args.rows * args.views; ++at) {
      const Geometry g = read_geometry(args.geometry + at * 6, args);
      taps_x = std::max<int64_t>(taps_x, g.taps_x), taps_y = std::max<int64_t>(taps_y, g.taps_y);
      packed = packed || is_packed(g, args);
    }
    if (!packed) return;
    for (int64_t at = -args.width; at < 2 * args.width; ++at)
      columns.push_back(within(at, args.width, args.border));
    for (int64_t at = -args.height; at < 2 * args.height; ++at) {
      const int32_t row = within(at, args.height, args.border);
      rows.push_back(row < 0 ? row : row * static_cast<int32_t>(args.width));
    }
  }
};

// Of a thread.
struct Scratch {
  std::vector<int32_t> columns, rows;              // where each output column's, one output row's pixels lie
  std::vector<float> column_weights, row_weights;  // of the filter
  std::vector<float> line;                         // an image's rows, weighted, with the fill at the end
  std::vector<float> band;                         // channels planes of kBandPixels or of a row
  std::vector<float> pixels;                       // of an image, as Packed has them
  int64_t packed_row = -1;                         // whose they are
  Packed packed{};

  Scratch(const Augment& args, const Needs& needs)
      : columns(static_cast<size_t>(args.view_width * needs.taps_x)),
        rows(static_cast<size_t>(std::max(needs.taps_y, args.view_height))),
        column_weights(columns.size()),
        row_weights(static_cast<size_t>(needs.taps_y)),
        line(static_cast<size_t>((args.width + 1) * args.channels)),
        band(static_cast<size_t>(std::max(args.view_width, kBandPixels) * args.channels)),
        pixels(needs.packed ? static_cast<size_t>((args.height * args.width + 1) * kMaxChannels) : 0) {
    if (!needs.packed) return;
    packed = {nullptr, needs.columns.data() + args.width, needs.rows.data() + args.height,
              static_cast<int32_t>(args.height), static_cast<int32_t>(args.width)};
  }
};

// One view of one image.
template <class S, class T>
class View {
 public:
  View(const Augment& args, int64_t view, int64_t row, Scratch& scratch)
      : args_(args), row_(row), at_(view * args.rows + row), scratch_(scratch) {
    int64_t sample = row;
    if (args.index) {
      const int64_t i = row * args.index_stride;
      sample = args.wide_index ? static_cast<const int64_t*>(args.index)[i]
                               : static_cast<const int32_t*>(args.index)[i];
    }
    image_ = {static_cast<const S*>(args.images) + sample * args.sample_stride,
              args.channels,
              args.height,
              args.width,
              args.channel_stride,
              args.row_stride,
              args.column_stride,
              args.border,
              {}};
    const double unit = args.bytes ? 255 : 1;
    for (int64_t c = 0; c < args.channels; ++c) image_.fill[c] = static_cast<float>(args.fill[c] * unit);
    pixels_ = args.view_height * args.view_width;
    to_ = static_cast<T*>(args.view) + at_ * args.channels * pixels_;
    pixel_stride_ = args.channels_last ? args.channels : 1;
    plane_stride_ = args.channels_last ? 1 : pixels_;
    normal_unit_ = args.color ? 1 : unit;
  }

  void run() {
    const Geometry g = read_geometry(args_.geometry + at_ * 6, args_);
    if (g.path == Path::nothing) return fill_nan();
    if (g.path == Path::copy && !args_.color) {
      set_copy(g);
      for (int64_t c = 0; c < args_.channels; ++c)
        copy_plane(image_, c, copy_, 0, args_.view_height, to_ + c * plane_stride_, pixel_stride_, normal(c));
    } else {
      run_bands(g);
    }
    if (args_.erase) erase(args_.erase + at_ * 4);
  }

 private:
  Normal normal(int64_t c) const {
    return {static_cast<float>(args_.mean[c] * normal_unit_),
            static_cast<float>(1 / (args_.std[c] * normal_unit_))};
  }

  void set_copy(const Geometry& g) {
    const int64_t x_step = g.m[0] < 0 ? -1 : 1, y_step = g.m[4] < 0 ? -1 : 1;
    const auto left = static_cast<int64_t>(g.m[2]), top = static_cast<int64_t>(g.m[5]);
    const int64_t width = args_.view_width;
    for (int64_t x = 0; x < width; ++x)
      scratch_.columns[static_cast<size_t>(x)] = within(left + x_step * x, args_.width, args_.border);
    for (int64_t y = 0; y < args_.view_height; ++y)
      scratch_.rows[static_cast<size_t>(y)] = within(top + y_step * y, args_.height, args_.border);
    const int64_t first = x_step > 0 ? -left : left - args_.width + 1;
    const int64_t begin = std::clamp<int64_t>(first, 0, width);
    const int64_t end = std::clamp<int64_t>(first + args_.width, begin, width);
    copy_ = {scratch_.columns.data(), scratch_.rows.data(), width, begin, end, left + x_step * begin, x_step};
  }

  void set_columns(const Geometry& g) {
    first_column_ = args_.width, last_column_ = -1;
    // The fill stands after the image's columns.
    const bool interleaved = image_.interleaved();
    const int64_t step = interleaved ? args_.channels : 1, count = args_.view_width;
    for (int64_t x = 0; x < count; ++x) {
      int32_t* const at = scratch_.columns.data() + x;
      taps_at(g.m[0] * static_cast<double>(x) + g.m[2], g.half_x, g.taps_x, args_.width, args_.border, at,
              scratch_.column_weights.data() + x, count);
      for (int64_t i = 0; i < g.taps_x * count; i += count) {
        if (at[i] < 0) {
          at[i] = static_cast<int32_t>(args_.width);
        } else {
          first_column_ = std::min<int64_t>(first_column_, at[i]);
          last_column_ = std::max<int64_t>(last_column_, at[i]);
        }
        at[i] = static_cast<int32_t>(at[i] * step);
      }
    }
    if (last_column_ < 0) first_column_ = 0;  // the filter meets none
    // Whole chunks, where the image has room for them.
    const int64_t span = (last_column_ - first_column_ + kChunk) / kChunk * kChunk;
    if (last_column_ < 0 || span > args_.width) return;
    first_column_ = std::min(first_column_, args_.width - span), last_column_ = first_column_ + span - 1;
  }

  void set_packed() {
    if (scratch_.packed_row == row_) return;
    auto* const pixels = reinterpret_cast<Pixel*>(scratch_.pixels.data());
    pack(image_, pixels);
    scratch_.packed.pixels = pixels, scratch_.packed_row = row_;
  }

  void run_bands(const Geometry& g) {
    if (g.path == Path::copy) set_copy(g);
    if (g.path == Path::axes) set_columns(g);
    if (is_packed(g, args_)) set_packed();
    const int64_t width = args_.view_width, height = args_.view_height, channels = args_.channels;
    const int64_t band_rows = std::max<int64_t>(1, kBandPixels / width), plane = band_rows * width;
    float* const band = scratch_.band.data();
    for (int64_t top = 0; top < height; top += band_rows) {
      const int64_t rows = std::min(band_rows, height - top);
      if (g.path == Path::copy) {
        for (int64_t c = 0; c < channels; ++c)
          copy_plane(image_, c, copy_, top, top + rows, band + c * plane, 1, Normal{0, 1});
      }
      for (int64_t y = top; y < top + rows && g.path != Path::copy; ++y) {
        float* const to = band + (y - top) * width;
        g.path == Path::axes ? row_of_axes(g, y, to, plane) : row_of_any(g, y, to, plane);
      }
      if (args_.color) {
        Color color{band,
                    plane,
                    rows * width,
                    args_.color + at_ * channels * (channels + 1),
                    args_.bytes ? 1 / 255.0f : 1.0f,
                    args_.clamp};
        channels == 1   ? mix<1>(color)
        : channels == 2 ? mix<2>(color)
        : channels == 3 ? mix<3>(color)
                        : mix<4>(color);
      }
      for (int64_t c = 0; c < channels; ++c) {
        normalize(band + c * plane, rows * width, normal(c),
                  to_ + c * plane_stride_ + top * width * pixel_stride_, pixel_stride_);
      }
    }
  }

  // The matrix keeps rows and columns: first the image's rows into one line, then the line's columns.
  void row_of_axes(const Geometry& g, int64_t y, float* to, int64_t plane) {
    taps_at(g.m[4] * static_cast<double>(y) + g.m[5], g.half_y, g.taps_y, args_.height, args_.border,
            scratch_.rows.data(), scratch_.row_weights.data(), 1);
    const bool interleaved = image_.interleaved();
    const int64_t channels = args_.channels, width = args_.width;
    const int64_t lines = interleaved ? 1 : channels, step = interleaved ? channels : 1;
    const int64_t begin = first_column_ * step, end = (last_column_ + 1) * step;
    const Line line{scratch_.rows.data(), scratch_.row_weights.data(), g.taps_y, begin, end};
    for (int64_t c = 0; c < lines; ++c) {
      float* const from = scratch_.line.data() + c * (width + 1);
      sum_rows(image_, c, line, from);
      for (int64_t k = 0; k < step; ++k) from[width * step + k] = image_.fill[interleaved ? k : c];
    }
    for (int64_t c = 0; c < channels; ++c) {
      const float* const from = scratch_.line.data() + (interleaved ? c : c * (width + 1));
      sum_columns(from, scratch_.columns.data(), scratch_.column_weights.data(), g.taps_x, args_.view_width,
                  to + c * plane);
    }
  }

  void row_of_any(const Geometry& g, int64_t y, float* to, int64_t plane) {
    const Slant slant{
        static_cast<float>(g.m[0]), static_cast<float>(g.m[1] * static_cast<double>(y) + g.m[2]),
        static_cast<float>(g.m[3]), static_cast<float>(g.m[4] * static_cast<double>(y) + g.m[5])};
    const bool packed = is_packed(g, args_);
    const int64_t width = args_.view_width;
    for (int64_t x = 0; x < width;) {
      if (packed) x = bilinear(scratch_.packed, args_.channels, slant, x, width, to, plane);
      if (x < width) {
        filtered(g, slant, x, to, plane);
        ++x;
      }
    }
  }

  // One pixel of any filter, over any edge.
  void filtered(const Geometry& g, const Slant& slant, int64_t x, float* to, int64_t plane) {
    const auto along = static_cast<float>(x);
    int32_t *const columns = scratch_.columns.data(), *const rows = scratch_.rows.data();
    float *const wx = scratch_.column_weights.data(), *const wy = scratch_.row_weights.data();
    taps_at(slant.x_step * along + slant.x, g.half_x, g.taps_x, args_.width, args_.border, columns, wx, 1);
    taps_at(slant.y_step * along + slant.y, g.half_y, g.taps_y, args_.height, args_.border, rows, wy, 1);
    for (int64_t c = 0; c < args_.channels; ++c) {
      float total = 0;
      for (int j = 0; j < g.taps_y; ++j) {
        float sum = 0;
        for (int i = 0; i < g.taps_x; ++i) {
          const bool outside = rows[j] < 0 || columns[i] < 0;
          sum += wx[i] * (outside ? image_.fill[c] : static_cast<float>(*image_.at(c, rows[j], columns[i])));
        }
        total += wy[j] * sum;
      }
      to[c * plane + x] = total;
    }
  }

  void fill_nan() {
    for (int64_t i = 0; i < args_.channels * pixels_; ++i)
      store(&to_[i], std::numeric_limits<float>::quiet_NaN());
  }

  void erase(const int32_t* box) {
    const int64_t top = box[0], left = box[1];
    const int64_t y0 = std::max<int64_t>(top, 0), y1 = std::min(top + box[2], args_.view_height);
    const int64_t x0 = std::max<int64_t>(left, 0), x1 = std::min(left + box[3], args_.view_width);
    for (int64_t c = 0; c < args_.channels; ++c) {
      T value;
      store(&value, static_cast<float>((args_.fill[c] - args_.mean[c]) / args_.std[c]));
      for (int64_t y = y0; y < y1; ++y) {
        T* const row = to_ + c * plane_stride_ + y * args_.view_width * pixel_stride_;
        for (int64_t x = x0; x < x1; ++x) row[x * pixel_stride_] = value;
      }
    }
  }

  const Augment& args_;
  const int64_t row_;
  const int64_t at_;  // which of all views
  Scratch& scratch_;
  Image<S> image_;
  Copy copy_{};
  int64_t first_column_ = 0, last_column_ = -1;  // of the image's that the filter meets
  T* to_;
  int64_t pixels_, pixel_stride_, plane_stride_;
  double normal_unit_;
};

// Views of one image follow each other: it is read from memory once.
template <class S, class T>
void run(const Augment& args) {
  const Needs needs(args);
  const int64_t items = args.rows * args.views;
  const int64_t values = items * args.channels * args.view_height * args.view_width;
  const int threads = threads_for(values, kValuesPerThread);
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < threads; ++thread) scratch.emplace_back(args, needs);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    for (int64_t item = items * thread / threads; item < items * (thread + 1) / threads; ++item)
      View<S, T>(args, item % args.views, item / args.views, scratch[static_cast<size_t>(thread)]).run();
  }
}

}  // namespace

void augment_cpu(const Augment& args) {
  visit(args.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, double>) args.bytes ? run<uint8_t, T>(args) : run<float, T>(args);
  });
}

}  // namespace mtk
