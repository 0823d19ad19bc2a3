// Advection and diffusion of images [batch, rows, columns, channels] by the leapfrog scheme of
// jaxeff/ode/transport/leapfrog.py on a periodic grid, in float32, with coefficients
// scale * max(0, factor * predicted + offset), and the gradient.
//
// One image and one vector of channels at a time: all steps are done while their planes are in
// cache. Planes hold A = velocity * dt / distance and B = diffusivity * dt / distance^2 by axis.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "planes.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

constexpr int64_t kParts = 64;  // of the batch, whatever the number of threads

struct Cell {
  int64_t here, below, above, right, left;  // places in a plane; the first two neighbours are ahead
};

struct Grid {
  int64_t rows, columns, rows_apart, columns_apart;
  int64_t size() const { return PlaneSize(rows, columns); }
  int64_t apart() const { return PlanesApart(rows, columns); }

  template <typename Body>
  void ForEachCell(const Body& body) const {
    for (int64_t r = 0; r < rows; ++r) {
      int64_t row = r * columns;
      int64_t below = (r + rows_apart) % rows * columns;
      int64_t above = (r + rows - rows_apart) % rows * columns;
      for (int64_t c = 0; c < columns; ++c) {
        int64_t right = c + columns_apart, left = c - columns_apart;
        right -= right >= columns ? columns : 0;
        left += left < 0 ? columns : 0;
        body(Cell{(row + c) * kLanes, (below + c) * kLanes, (above + c) * kLanes,
                  (row + right) * kLanes, (row + left) * kLanes});
      }
    }
  }
};

struct Planes {
  float *ax, *ay, *bx, *by;  // as said above
  float *centre, *inverse;   // weight of a cell's own value; 1 / (1 + S)

  Planes(float* memory, int64_t size)
      : ax(memory), ay(ax + size), bx(ay + size), by(bx + size), centre(by + size),
        inverse(centre + size) {}
  float* operator[](int64_t field) const { return ax + field * (ay - ax); }
};
constexpr int64_t kPlanes = 6;

void Prepare(const Grid& grid, const Planes& p) {
  grid.ForEachCell([&](const Cell& i) {
    Vector along = Load(p.ax + i.above) - Load(p.ax + i.below);
    Vector across = Load(p.ay + i.left) - Load(p.ay + i.right);
    Vector total = Load(p.bx + i.here) + Load(p.by + i.here);
    Store(p.centre + i.here, along + across);
    Store(p.inverse + i.here, 1.0f / (1.0f + 2.0f * total));
  });
}

// The field after `before` and h, with the source times 2 dt added.
template <typename Write>
void Step(const Grid& grid, const Planes& p, const float* before, const float* h,
          const float* source, float source_scale, const Write& write) {
  grid.ForEachCell([&](const Cell& i) {
    Vector bx = 2.0f * Load(p.bx + i.here), by = 2.0f * Load(p.by + i.here);
    Vector ax = Load(p.ax + i.here), ay = Load(p.ay + i.here);
    Vector below = Load(h + i.below), above = Load(h + i.above);
    Vector right = Load(h + i.right), left = Load(h + i.left);
    Vector sum = (1.0f - bx - by) * Load(before + i.here) + Load(p.centre + i.here) * Load(h + i.here);
    sum += source_scale * Load(source + i.here);
    sum += bx * (below + above) + ax * (above - below);
    sum += by * (right + left) + ay * (left - right);
    write(i.here, sum * Load(p.inverse + i.here));
  });
}

// What images are made of, and where the coefficients of a vector of channels come from.
struct Problem {
  Grid grid;
  int64_t batch, channels, fields, steps;
  const float *h, *x, *predicted, *kernel, *factor, *offset, *scales;
  int64_t side, across;  // of the kernel

  int64_t image() const { return grid.rows * grid.columns * channels; }
  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
  float source_scale() const { return scales[4]; }

  void Copy(const float* images, int64_t n, int64_t first, int64_t width, float* to) const {
    CopyPlane(images + n * image() + first, grid.rows, grid.columns, channels, width, 0, 0, to);
  }

  // Coefficients of image n, by its predicted fields or by convolutions of h.
  void Coefficients(int64_t n, int64_t first, int64_t width, const Planes& p, float* memory) const {
    Vector factors[4], offsets[4];
    for (int64_t f = 0; f < fields; ++f) {
      factors[f] = LoadPart(factor + f * channels + first, width);
      offsets[f] = LoadPart(offset + f * channels + first, width);
    }
    auto write = [&](int64_t pixel, int64_t f, const Vector& value) JAXEFF_INLINE {
      Vector z = value * factors[f] + offsets[f];
      Store(p[f] + pixel * kLanes, z < 0 ? Vector{} : scales[f] * z);
    };
    int64_t pixels = grid.rows * grid.columns;
    if (kernel) {
      float* weights = memory + PlaneSize(grid.rows + side - 1, grid.columns + across - 1);
      CopyPlane(h + n * image() + first, grid.rows, grid.columns, channels, width, side / 2,
                across / 2, memory);
      CopyKernels(kernel, side * across, fields, channels, first, width, weights);
      auto all = fields == 4 ? Fields<4, decltype(write)> : Fields<2, decltype(write)>;
      all(memory, grid.rows, grid.columns, side, across, weights, write);
    } else {
      const float* from = predicted + n * image() * fields + first;
      for (int64_t i = 0; i < pixels; ++i)
        for (int64_t f = 0; f < fields; ++f)
          write(i, f, LoadPart(from + (i * fields + f) * channels, width));
    }
    for (int64_t f = fields; f < 4; ++f)  // constants
      std::fill(p[f], p[f] + grid.size(), scales[f]);
    Prepare(grid, p);
  }
};

Problem ProblemOf(const Array& h, const Array& x, const Array& predicted, const float* kernel,
                  const Array& factor, const Array& offset, const Array& scales,
                  int64_t rows_apart, int64_t columns_apart, int64_t steps) {
  auto size = h.dimensions();
  Problem problem{{size[1], size[2], rows_apart, columns_apart}, size[0], size[3], 0, steps,
                  h.typed_data(), x.element_count() ? x.typed_data() : nullptr,
                  predicted.typed_data(), kernel, factor.typed_data(), offset.typed_data(),
                  scales.typed_data(), 1, 1};
  problem.fields = factor.element_count() / size[3];
  return problem;
}

float* Aligned(int64_t floats) {
  auto place = reinterpret_cast<uintptr_t>(Scratch(floats + 16));
  return reinterpret_cast<float*>((place + 63) / 64 * 64);
}

ffi::Error Transport(ffi::ThreadPool pool, Array h, Array x, Array predicted, Array kernel,
                     Array factor, Array offset, Array scales, Array out_factor, Array out_offset,
                     Result y, int64_t rows_apart, int64_t columns_apart, int64_t steps,
                     int64_t threads) {
  bool convolves = kernel.element_count() > 0;
  Problem problem = ProblemOf(h, x, predicted, convolves ? kernel.typed_data() : nullptr, factor,
                              offset, scales, rows_apart, columns_apart, steps);
  const Grid& grid = problem.grid;
  if (convolves) problem.side = kernel.dimensions()[0], problem.across = kernel.dimensions()[1];
  int64_t size = grid.apart(), blocks = problem.blocks(), channels = problem.channels;
  int64_t padded = PlaneSize(grid.rows + problem.side, grid.columns + problem.across) +
                   problem.side * problem.across * 4 * kLanes;
  bool finishes = out_factor.element_count() > 0;
  ForEachPiece(pool, threads, problem.batch * blocks, [&](int64_t piece) {
    int64_t n = piece / blocks, first = piece % blocks * kLanes;
    int64_t width = std::min(kLanes, channels - first);
    float* memory = Aligned((kPlanes + 4) * size + padded);
    Planes planes(memory, size);
    float* fields[] = {memory + kPlanes * size, memory + (kPlanes + 1) * size,
                       memory + (kPlanes + 2) * size};
    float *source = memory + (kPlanes + 3) * size, *rest = source + size;
    problem.Coefficients(n, first, width, planes, rest);
    problem.Copy(problem.h, n, first, width, fields[1]);
    if (problem.x) problem.Copy(problem.x, n, first, width, source);
    float *before = problem.x ? source : fields[1], *now = fields[1];
    const float* starting = before;  // also the source, which stays
    Vector scale{}, shift{};
    if (finishes) {
      scale = LoadPart(out_factor.typed_data() + first, width);
      shift = LoadPart(out_offset.typed_data() + first, width);
    }
    float* to = y->typed_data() + n * problem.image() + first;
    for (int64_t k = 0; k + 1 < steps; ++k) {
      float* next = k < 2 ? fields[2 * k] : before;
      Step(grid, planes, before, now, starting, problem.source_scale(),
           [&](int64_t place, const Vector& value) { Store(next + place, value); });
      before = now, now = next;
    }
    Step(grid, planes, before, now, starting, problem.source_scale(),
         [&](int64_t place, Vector value) {
           if (finishes) {
             value = value * scale + shift;
             value = value < 0 ? Vector{} : value;
           }
           StorePart(to + place / kLanes * channels, value, width);
         });
  });
  return ffi::Error::Success();
}

// Cotangents of the coefficients' planes, summed over steps, as ĝ = g / (1 + S) times fields.
struct Totals {
  float *ax, *ay, *bx, *by, *centre, *total, *source;
  Totals(float* memory, int64_t size)
      : ax(memory), ay(ax + size), bx(ay + size), by(bx + size), centre(by + size),
        total(centre + size), source(total + size) {}
};
constexpr int64_t kTotals = 7;

void Add(float* to, const Vector& value) { Store(to, Load(to) + value); }

// The transpose of a step: adds to the totals and to the cotangent of h, and returns that of before.
void StepBack(const Grid& grid, const Planes& p, const Totals& totals, const float* before,
              const float* h, const float* after, const float* g, float* g_h, float* g_before,
              float* scaled) {
  for (int64_t i = 0; i < grid.size(); i += kLanes)
    Store(scaled + i, Load(g + i) * Load(p.inverse + i));
  grid.ForEachCell([&](const Cell& i) {
    Vector slope = Load(scaled + i.here);
    Vector below = Load(h + i.below), above = Load(h + i.above);
    Vector right = Load(h + i.right), left = Load(h + i.left);
    Add(totals.ax + i.here, slope * (above - below));
    Add(totals.ay + i.here, slope * (left - right));
    Add(totals.bx + i.here, slope * (below + above));
    Add(totals.by + i.here, slope * (right + left));
    Add(totals.centre + i.here, slope * Load(h + i.here));
    Add(totals.total + i.here, slope * (Load(before + i.here) + Load(after + i.here)));
    Add(totals.source + i.here, slope);
    Vector sum = Load(p.bx + i.here) + Load(p.by + i.here);
    Store(g_before + i.here, (1.0f - 2.0f * sum) * slope);
    // A cell is ahead of the one above it, and behind the one below it.
    Vector own = Load(p.centre + i.here) * slope;
    own += (2.0f * Load(p.bx + i.above) - Load(p.ax + i.above)) * Load(scaled + i.above);
    own += (2.0f * Load(p.bx + i.below) + Load(p.ax + i.below)) * Load(scaled + i.below);
    own += (2.0f * Load(p.by + i.left) - Load(p.ay + i.left)) * Load(scaled + i.left);
    own += (2.0f * Load(p.by + i.right) + Load(p.ay + i.right)) * Load(scaled + i.right);
    Add(g_h + i.here, own);
  });
}

// Writes the cotangents of predicted fields of one image, and adds those of factor and offset.
void PredictedBack(const Problem& problem, const Planes& p, const Totals& totals, int64_t n,
                   int64_t first, int64_t width, float* dpredicted, double* sums) {
  int64_t channels = problem.channels, fields = problem.fields;
  Vector factors[4], of_factor[4] = {}, of_offset[4] = {};
  for (int64_t f = 0; f < fields; ++f)
    factors[f] = LoadPart(problem.factor + f * channels + first, width);
  problem.grid.ForEachCell([&](const Cell& i) {
    const float* centre = totals.centre;
    Vector total = Load(totals.total + i.here);
    const Vector slopes[4] = {
        Load(totals.ax + i.here) + Load(centre + i.below) - Load(centre + i.above),
        Load(totals.ay + i.here) + Load(centre + i.right) - Load(centre + i.left),
        2.0f * (Load(totals.bx + i.here) - total), 2.0f * (Load(totals.by + i.here) - total)};
    int64_t place = (n * problem.image() + i.here / kLanes * channels) * fields + first;
    for (int64_t f = 0; f < fields; ++f, place += channels) {
      Vector slope = Load(p[f] + i.here) != 0 ? problem.scales[f] * slopes[f] : Vector{};
      of_offset[f] += slope;
      of_factor[f] += slope * LoadPart(problem.predicted + place, width);
      StorePart(dpredicted + place, slope * factors[f], width);
    }
  });
  for (int64_t f = 0; f < fields; ++f)
    for (int64_t c = 0; c < width; ++c) {
      sums[f * channels + first + c] += of_factor[f][c];
      sums[(fields + f) * channels + first + c] += of_offset[f][c];
    }
}

ffi::Error TransportGradient(ffi::ThreadPool pool, Array h, Array x, Array predicted, Array factor,
                             Array offset, Array scales, Array g, Result dh, Result dx,
                             Result dpredicted, Result dnorm, int64_t rows_apart,
                             int64_t columns_apart, int64_t steps, int64_t threads) {
  Problem problem = ProblemOf(h, x, predicted, nullptr, factor, offset, scales, rows_apart,
                              columns_apart, steps);
  const Grid& grid = problem.grid;
  int64_t size = grid.apart(), blocks = problem.blocks(), channels = problem.channels;
  int64_t parts = std::min(problem.batch, kParts), norms = 2 * problem.fields * channels;
  std::vector<double> sums(parts * norms);
  ForEachPiece(pool, threads, parts * blocks, [&](int64_t piece) {
    int64_t part = piece / blocks, first = piece % blocks * kLanes;
    int64_t width = std::min(kLanes, channels - first);
    float* memory = Aligned((kPlanes + kTotals + 4 + steps + 2) * size);
    Planes planes(memory, size);
    float* accumulated = memory + kPlanes * size;
    Totals totals(accumulated, size);
    float* work = accumulated + kTotals * size;
    float *slopes[] = {work, work + size, work + 2 * size}, *scaled = work + 3 * size;
    float* fields = work + 4 * size;  // one step before, h, and those after it
    for (int64_t n = problem.batch * part / parts; n < problem.batch * (part + 1) / parts; ++n) {
      problem.Coefficients(n, first, width, planes, nullptr);
      problem.Copy(problem.x ? problem.x : problem.h, n, first, width, fields);
      problem.Copy(problem.h, n, first, width, fields + size);
      for (int64_t k = 0; k < steps; ++k) {
        float* next = fields + (k + 2) * size;
        Step(grid, planes, fields + k * size, fields + (k + 1) * size, fields,
             problem.source_scale(),
             [&](int64_t place, const Vector& value) { Store(next + place, value); });
      }
      std::fill(accumulated, work, 0.0f);
      std::fill(slopes[1], slopes[1] + size, 0.0f);  // their order turns with the steps
      problem.Copy(g.typed_data(), n, first, width, slopes[0]);
      for (int64_t k = steps; k-- > 0;) {
        const float* before = fields + k * size;
        StepBack(grid, planes, totals, before, before + size, before + 2 * size, slopes[0],
                 slopes[1], slopes[2], scaled);
        float* done = slopes[0];
        slopes[0] = slopes[1], slopes[1] = slopes[2], slopes[2] = done;
      }
      PredictedBack(problem, planes, totals, n, first, width, dpredicted->typed_data(),
                    &sums[part * norms]);
      int64_t place = n * problem.image() + first;
      for (int64_t i = 0; i < grid.size(); i += kLanes, place += channels) {
        Vector of_x = Load(slopes[1] + i) + problem.source_scale() * Load(totals.source + i);
        Vector of_h = Load(slopes[0] + i);
        if (problem.x)
          StorePart(dx->typed_data() + place, of_x, width);
        else
          of_h += of_x;
        StorePart(dh->typed_data() + place, of_h, width);
      }
    }
  });
  for (int64_t i = 0; i < norms; ++i) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * norms + i];
    dnorm->typed_data()[i] = static_cast<float>(sum);
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_transport, Transport,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("rows_apart")
                                  .Attr<int64_t>("columns_apart")
                                  .Attr<int64_t>("steps")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_transport_gradient, TransportGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("rows_apart")
                                  .Attr<int64_t>("columns_apart")
                                  .Attr<int64_t>("steps")
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
