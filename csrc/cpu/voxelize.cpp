// Voxel grids. Events are sorted into tiles of the grid before they are added: the sums of one tile (36 KiB)
// stay in the nearest caches, threads share no cell, and 64-bit sums exist for a few tiles at a time only. In order:
//   count_events    how many events vote in each tile (a stretch of rows and columns of one bin);
//   place_events    each event as a record of 4 or 8 bytes, tile after tile (a counting sort, in any order of times);
//   fill_tile       adds up the records of a tile and writes its voxels.
// Events are read twice, in vectors, which costs less than adding them to a grid that no cache holds.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"
#include "operators/voxelize.h"
#include "tensors.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kBlock = 512;                    // events taken apart at a time: what they become stays in L1
constexpr int64_t kChunk = 16 * kBlock;            // events that one thread takes at a time
constexpr int64_t kGroupBytes = int64_t{8} << 20;  // of records made at a time: they stay in L3
constexpr int64_t kMostGroups = 8;                 // events out of order are read again for each group
constexpr int kRowBits = 5, kColumnBits = 6;       // of a position in a tile
constexpr int64_t kGridTileRows = int64_t{1} << kRowBits, kGridTileColumns = int64_t{1} << kColumnBits;
// A rectified event votes for two rows and two columns. A tile has a border of one cell for votes outside it, which
// nobody reads: an event on an edge goes to the tiles on both sides.
constexpr int64_t kStride = kGridTileColumns + 2;
constexpr int64_t kTileCells = (kGridTileRows + 2) * kStride;

// An event in its tile. A record holds, from the lowest bit: the first cell it votes for, the weight of the later
// bin, whether it is negative, and with rectified positions the weights of the next column and row.
using PixelRecord = uint32_t;
using RectifiedRecord = uint64_t;
constexpr int kCellBits = 12, kSpaceBits = 16;  // a space weight is at most 2^15, inclusive
constexpr int kLateShift = kCellBits, kSignShift = kLateShift + kTimeBits, kColumnShift = kSignShift + 1,
              kRowShift = kColumnShift + kSpaceBits;
static_assert(kTileCells <= int64_t{1} << kCellBits && kColumnShift <= 32 && kRowShift + kSpaceBits <= 64);

template <class Record>
constexpr bool kRectified = std::is_same_v<Record, RectifiedRecord>;

// Sums of a cell over the events of one bin: what bin b gets is 2^kTimeBits all - late, what bin b + 1 gets is late.
struct CellSums {
  int64_t all, late;
};

// Division of numbers that are not negative by one, in vectors where the processor has 64-bit ones. `reciprocal` is less
// than 1 / divisor by 2^-50 of it, more than the three roundings (2^-53 each) can add: the estimate is never above the
// exact quotient. For quotients below 2^48 it is less than 1 below it, so that its floor is the quotient or one less,
// which the rest tells.
struct Divisor {
  int64_t divisor;
  double reciprocal;

  explicit Divisor(int64_t value) : divisor(value), reciprocal((1 - 0x1p-50) / static_cast<double>(value)) {}

  FLOWFUSE_INLINE int64_t quotient(int64_t number) const {
    const int64_t estimate = static_cast<int64_t>(static_cast<double>(number) * reciprocal);
    return estimate + (number - estimate * divisor >= divisor ? 1 : 0);
  }
};

// Some events of an item, in order.
struct Chunk {
  int64_t item, begin, end;
  int64_t first_tile, last_tile;  // first and last of the tiles that its events go to; see tile_of_bin
  int64_t used;                   // events that are not ignored
};

struct Voxelize {
  Events events;
  const int64_t *t0, *t1, *offsets;
  int64_t items, bins, height, width;
  bool rectified;

  FLOWFUSE_INLINE int64_t tiles_across() const { return (width + kGridTileColumns - 1) >> kColumnBits; }
  FLOWFUSE_INLINE int64_t tiles_of_bin() const { return tiles_across() * ((height + kGridTileRows - 1) >> kRowBits); }
  // Tiles are numbered through all bins of all items.
  FLOWFUSE_INLINE int64_t tile_of_bin(int64_t item, int64_t bin) const { return (item * bins + bin) * tiles_of_bin(); }
  int64_t tiles() const { return tile_of_bin(items, 0); }
  FLOWFUSE_INLINE int bits(int64_t item) const { return rectified ? space_bits(offsets[item + 1] - offsets[item]) : 0; }
};

// ---- events to records ----------------------------------------------------------------------------

// Columns or rows; `limit`, the sensor's size, for all that are not on it.
template <class From>
FLOWFUSE_INLINE void load_pixels_as(const void* source, int64_t begin, int64_t count, int64_t limit, int64_t* out) {
  using Unsigned = std::conditional_t<sizeof(From) == 8, uint64_t, uint32_t>;  // a negative number becomes a large one
  const From* from = static_cast<const From*>(source) + begin;
  const Unsigned most = static_cast<Unsigned>(limit);
  for (int64_t i = 0; i < count; ++i) {
    const Unsigned value = static_cast<Unsigned>(from[i]);
    out[i] = static_cast<int64_t>(value < most ? value : most);
  }
}

FLOWFUSE_INLINE void load_pixels(const void* source, ScalarType dtype, int64_t begin, int64_t count, int64_t limit,
                                 int64_t* out) {
  switch (dtype) {
    case ScalarType::Byte: return load_pixels_as<uint8_t>(source, begin, count, limit, out);
    case ScalarType::Short: return load_pixels_as<int16_t>(source, begin, count, limit, out);
    case ScalarType::UInt16: return load_pixels_as<uint16_t>(source, begin, count, limit, out);
    case ScalarType::Int: return load_pixels_as<int32_t>(source, begin, count, limit, out);
    default: return load_pixels_as<int64_t>(source, begin, count, limit, out);
  }
}

template <class From>
FLOWFUSE_INLINE void load_positions_as(const void* source, int64_t begin, int64_t count, double* out) {
  const From* from = static_cast<const From*>(source) + begin;
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<double>(from[i]);
}

FLOWFUSE_INLINE void load_positions(const void* source, ScalarType dtype, int64_t begin, int64_t count, double* out) {
  if (dtype == ScalarType::Float) return load_positions_as<float>(source, begin, count, out);
  return load_positions_as<double>(source, begin, count, out);
}

template <class From>
FLOWFUSE_INLINE void load_negative_as(const void* source, int64_t begin, int64_t count, uint8_t* out) {
  const From* from = static_cast<const From*>(source) + begin;
  for (int64_t i = 0; i < count; ++i) out[i] = from[i] > 0 ? 0 : 1;
}

FLOWFUSE_INLINE void load_negative(const void* source, ScalarType dtype, int64_t begin, int64_t count, uint8_t* out) {
  switch (dtype) {
    case ScalarType::Byte:
    case ScalarType::Bool: return load_negative_as<uint8_t>(source, begin, count, out);
    case ScalarType::Char: return load_negative_as<int8_t>(source, begin, count, out);
    case ScalarType::Short: return load_negative_as<int16_t>(source, begin, count, out);
    case ScalarType::Int: return load_negative_as<int32_t>(source, begin, count, out);
    default: return load_negative_as<int64_t>(source, begin, count, out);
  }
}

// The bin of each time, then the weight of the later one in the lowest kTimeBits; -1 outside the window.
FLOWFUSE_INLINE void load_times(const int64_t* times, int64_t count, int64_t t0, const Divisor& duration, int64_t bins,
                                int64_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    // Times may be as far apart as int64 goes: unsigned numbers wrap, and none comes back into the window.
    const uint64_t elapsed = static_cast<uint64_t>(times[i]) - static_cast<uint64_t>(t0);
    const bool inside = elapsed < static_cast<uint64_t>(duration.divisor);
    const int64_t position = (bins - 1) * static_cast<int64_t>(inside ? elapsed : 0);  // below 2^56
    const int64_t bin = duration.quotient(position);
    const int64_t late = duration.quotient((position - bin * duration.divisor) << kTimeBits);
    out[i] = inside ? bin << kTimeBits | late : -1;
  }
}

constexpr uint8_t kRight = 1, kBelow = 2;  // an event votes in the next tile, too

template <class Record>
struct EventBlock {
  int64_t tile[kBlock];  // -1: the event is ignored
  Record record[kBlock];
  uint8_t beyond[kBlock];  // kRight, kBelow; with rectified positions only
};

FLOWFUSE_INLINE void sort_block(const Voxelize& params, const Chunk& chunk, int64_t begin, int64_t count,
                                const int64_t* time, const uint8_t* negative, EventBlock<PixelRecord>& block) {
  int64_t x[kBlock], y[kBlock];
  load_pixels(params.events.x, params.events.position_dtype, begin, count, params.width, x);
  load_pixels(params.events.y, params.events.position_dtype, begin, count, params.height, y);
  const int64_t first = params.tile_of_bin(chunk.item, 0), of_bin = params.tiles_of_bin(),
                across = params.tiles_across();
  for (int64_t i = 0; i < count; ++i) {
    const bool used = x[i] < params.width && y[i] < params.height && time[i] >= 0;
    const int64_t tile = first + (time[i] >> kTimeBits) * of_bin + (y[i] >> kRowBits) * across + (x[i] >> kColumnBits);
    block.tile[i] = used ? tile : -1;
    const int64_t cell = ((y[i] & (kGridTileRows - 1)) + 1) * kStride + (x[i] & (kGridTileColumns - 1)) + 1;
    const int64_t late = time[i] & ((int64_t{1} << kTimeBits) - 1);
    block.record[i] = static_cast<PixelRecord>(cell | late << kLateShift | int64_t{negative[i]} << kSignShift);
  }
}

FLOWFUSE_INLINE void sort_block(const Voxelize& params, const Chunk& chunk, int64_t begin, int64_t count, int64_t* time,
                                const uint8_t* negative, EventBlock<RectifiedRecord>& block) {
  double x[kBlock], y[kBlock];
  load_positions(params.events.x, params.events.position_dtype, begin, count, x);
  load_positions(params.events.y, params.events.position_dtype, begin, count, y);
  const int64_t first = params.tile_of_bin(chunk.item, 0), of_bin = params.tiles_of_bin(),
                across = params.tiles_across();
  const int64_t last_column = params.width - 1, last_row = params.height - 1;
  const double width = static_cast<double>(params.width), height = static_cast<double>(params.height);
  const int bits = params.bits(chunk.item);
  for (int64_t i = 0; i < count; ++i) {  // on its own: compilers see no vectors in both loops as one
    const bool inside = (x[i] > -1) & (x[i] < width) & (y[i] > -1) & (y[i] < height);  // NaN is not
    time[i] = inside ? time[i] : -1;
    x[i] = inside ? x[i] : 0;
    y[i] = inside ? y[i] : 0;
  }
  for (int64_t i = 0; i < count; ++i) {
    const SpaceWeight column = space_weight(x[i], bits), row = space_weight(y[i], bits);
    const int64_t c = column.cell < 0 ? 0 : column.cell, r = row.cell < 0 ? 0 : row.cell;
    const int64_t tile = first + (time[i] >> kTimeBits) * of_bin + (r >> kRowBits) * across + (c >> kColumnBits);
    block.tile[i] = time[i] >= 0 ? tile : -1;
    const int64_t tile_row = row.cell - (r & -kGridTileRows) + 1,
                  tile_column = column.cell - (c & -kGridTileColumns) + 1;
    const int64_t late = time[i] & ((int64_t{1} << kTimeBits) - 1);
    block.record[i] = static_cast<RectifiedRecord>((tile_row * kStride + tile_column) | late << kLateShift |
                                                   int64_t{negative[i]} << kSignShift | column.next << kColumnShift |
                                                   row.next << kRowShift);
    const bool right = (tile_column == kGridTileColumns) & (column.cell < last_column);
    const bool below = (tile_row == kGridTileRows) & (row.cell < last_row);
    block.beyond[i] = static_cast<uint8_t>((right ? kRight : 0) | (below ? kBelow : 0));
  }
}

// Calls place(tile, record) for the tiles of [first, last) in which the events of a chunk vote, all tiles of a bin or
// none; returns the chunk with what is known of it then.
template <class Record, class Place>
FLOWFUSE_INLINE Chunk sort_chunk(const Voxelize& params, Chunk chunk, int64_t first, int64_t last, const Place& place) {
  int64_t time[kBlock];
  uint8_t negative[kBlock];
  EventBlock<Record> block;
  const Divisor duration(params.t1[chunk.item] - params.t0[chunk.item]);
  const int64_t across = params.tiles_across();
  uint64_t first_tile = ~uint64_t{0};  // which -1 is, too
  chunk.last_tile = -1;
  chunk.used = 0;
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
    const int64_t count = chunk.end - begin < kBlock ? chunk.end - begin : kBlock;
    load_times(params.events.t + begin, count, params.t0[chunk.item], duration, params.bins, time);
    load_negative(params.events.p, params.events.polarity_dtype, begin, count, negative);
    sort_block(params, chunk, begin, count, time, negative, block);
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t tile = static_cast<uint64_t>(block.tile[i]);
      first_tile = tile < first_tile ? tile : first_tile;
      chunk.last_tile = block.tile[i] > chunk.last_tile ? block.tile[i] : chunk.last_tile;
      chunk.used += block.tile[i] >= 0 ? 1 : 0;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t tile = block.tile[i];
      if (tile < first || tile >= last) continue;
      const Record record = block.record[i];
      place(tile, record);
      if constexpr (kRectified<Record>) {  // the border's cells are those of the next tile, counted from there
        const uint8_t beyond = block.beyond[i];
        if (beyond == 0) continue;
        if (beyond & kRight) place(tile + 1, record - kGridTileColumns);
        if (beyond & kBelow) place(tile + across, record - kGridTileRows * kStride);
        if (beyond == (kRight | kBelow)) place(tile + across + 1, record - kGridTileRows * kStride - kGridTileColumns);
      }
    }
  }
  chunk.first_tile = static_cast<int64_t>(first_tile);
  return chunk;
}

template <class Record>
FLOWFUSE_INLINE Chunk count_events(const Voxelize& params, const Chunk& chunk, int64_t* counts) {
  return sort_chunk<Record>(params, chunk, 0, params.tiles(), [&](int64_t tile, Record) { ++counts[tile]; });
}

// places: where the next record of each tile goes.
template <class Record>
FLOWFUSE_INLINE void place_events(const Voxelize& params, const Chunk& chunk, int64_t first, int64_t last,
                                  int64_t* places, Record* records) {
  sort_chunk<Record>(params, chunk, first, last,
                     [&](int64_t tile, Record record) { records[places[tile]++] = record; });
}

// ---- records to voxels ----------------------------------------------------------------------------

FLOWFUSE_INLINE void add_vote(CellSums& sum, int64_t weight, int64_t late) {
  sum.all += weight;
  sum.late += weight * late;
}

template <class Record>
FLOWFUSE_INLINE void add_records(const Record* records, int64_t count, int bits, CellSums* sums) {
  for (int64_t i = 0; i < count; ++i) {
    const Record record = records[i];
    CellSums* sum = sums + (record & ((1 << kCellBits) - 1));
    const int64_t late = record >> kLateShift & ((1 << kTimeBits) - 1);
    const int64_t sign = 1 - 2 * static_cast<int64_t>(record >> kSignShift & 1);
    if constexpr (kRectified<Record>) {
      const int64_t right = record >> kColumnShift & ((1 << kSpaceBits) - 1), lower = record >> kRowShift;
      const int64_t above = sign * ((int64_t{1} << bits) - lower), below = sign * lower;
      const int64_t left = (int64_t{1} << bits) - right;
      add_vote(sum[0], above * left, late);
      add_vote(sum[1], above * right, late);
      add_vote(sum[kStride], below * left, late);
      add_vote(sum[kStride + 1], below * right, late);
    } else {
      add_vote(*sum, sign, late);
    }
  }
}

// Rows and columns of a bin's grid that one tile of it covers.
struct Area {
  int64_t first_row, first_column, rows, columns;

  Area(const Voxelize& params, int64_t tile)
      : first_row(tile / params.tiles_across() * kGridTileRows),
        first_column(tile % params.tiles_across() * kGridTileColumns),
        rows(std::min(kGridTileRows, params.height - first_row)),
        columns(std::min(kGridTileColumns, params.width - first_column)) {}
};

// Voxels of a tile from its sums, or from none, and from what the bin before has carried to this one. `carry` [height,
// width] then holds what goes on to the next bin, and the sums are 0.
FLOWFUSE_INLINE void write_voxels(const Area area, int64_t width, float scale, CellSums* sums, int64_t* carry,
                                  float* out) {
  for (int64_t row = 0; row < area.rows; ++row) {
    const int64_t begin = (area.first_row + row) * width + area.first_column;
    int64_t* __restrict later = carry + begin;
    float* __restrict voxels = out + begin;
    if (sums == nullptr) {
      for (int64_t i = 0; i < area.columns; ++i) voxels[i] = static_cast<float>(later[i]) * scale;
      for (int64_t i = 0; i < area.columns; ++i) later[i] = 0;
      continue;
    }
    const CellSums* __restrict sum = sums + (row + 1) * kStride + 1;
    for (int64_t i = 0; i < area.columns; ++i) {
      const int64_t total = (sum[i].all * (int64_t{1} << kTimeBits) - sum[i].late) + later[i];
      later[i] = sum[i].late;
      voxels[i] = static_cast<float>(total) * scale;
    }
  }
  if (sums != nullptr) memset(sums, 0, kTileCells * sizeof(CellSums));
}

// Voxels of one tile in bins [first, last) of a group, whose records lie in their order. ends: where those of each
// tile end.
template <class Record>
FLOWFUSE_INLINE void fill_tile(const Voxelize& params, const Area& area, int64_t tile, int64_t first, int64_t last,
                               const Record* records, const int64_t* ends, CellSums* sums, int64_t* carry, float* out) {
  const int64_t of_bin = params.tiles_of_bin(), plane = params.height * params.width;
  for (int64_t bin = first; bin < last; ++bin) {  // numbered through all items
    const int64_t item = bin / params.bins, index = bin * of_bin + tile;
    const int64_t begin = index == first * of_bin ? 0 : ends[index - 1];
    const bool empty = begin == ends[index];
    if (bin % params.bins == 0) {
      for (int64_t row = area.first_row; row < area.first_row + area.rows; ++row) {
        memset(carry + row * params.width + area.first_column, 0, area.columns * sizeof(int64_t));
      }
    }
    const int bits = params.bits(item);
    // The voxels' lines come from memory, a few of each row: asked for before the additions, which need no memory.
    for (int64_t row = 0; row < area.rows; ++row) {
      const float* voxels = out + bin * plane + (area.first_row + row) * params.width + area.first_column;
      for (int64_t i = 0; i < area.columns; i += 16) __builtin_prefetch(voxels + i, 1);
    }
    add_records(records + begin, ends[index] - begin, bits, sums);
    write_voxels(area, params.width, voxel_scale(bits), empty ? nullptr : sums, carry, out + bin * plane);
  }
}

// ---- the operator ---------------------------------------------------------------------------------

std::vector<Chunk> chunks_of(const Voxelize& params) {
  std::vector<Chunk> chunks;
  for (int64_t item = 0; item < params.items; ++item) {
    for (int64_t begin = params.offsets[item]; begin < params.offsets[item + 1]; begin += kChunk) {
      chunks.push_back({item, begin, std::min(begin + kChunk, params.offsets[item + 1]), 0, 0, 0});
    }
  }
  return chunks;
}

// Bins, numbered through all items, whose records are made at a time.
struct BinGroup {
  int64_t first, last, records;
};

// counts [parts, tiles] become the places of first records in those of their group.
std::vector<BinGroup> make_groups(const Voxelize& params, int64_t parts, int64_t record_bytes, int64_t* counts) {
  const int64_t of_bin = params.tiles_of_bin(), tiles = params.tiles();
  std::vector<int64_t> of_bins(params.items * params.bins, 0);
  int64_t all = 0;
  for (int64_t bin = 0; bin < params.items * params.bins; ++bin) {
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t* count = counts + part * tiles + bin * of_bin;
      for (int64_t tile = 0; tile < of_bin; ++tile) of_bins[bin] += count[tile];
    }
    all += of_bins[bin];
  }
  const int64_t most = std::max(kGroupBytes / record_bytes, all / kMostGroups);
  std::vector<BinGroup> groups{{0, 0, 0}};
  for (int64_t bin = 0; bin < params.items * params.bins; ++bin) {
    if (groups.back().records > 0 && groups.back().records + of_bins[bin] > most) groups.push_back({bin, bin, 0});
    BinGroup& group = groups.back();
    group.last = bin + 1;
    for (int64_t tile = bin * of_bin; tile < (bin + 1) * of_bin; ++tile) {
      for (int64_t part = 0; part < parts; ++part) {
        int64_t& count = counts[part * tiles + tile];
        const int64_t place = group.records;
        group.records += count;
        count = place;
      }
    }
  }
  return groups;
}

template <class Record>
void run(const Voxelize& params, const Tensor& like, float* voxels, int64_t* ignored) {
  const char* op = "voxelize";
  std::vector<Chunk> chunks = chunks_of(params);
  Chunk* chunk = chunks.data();
  const int64_t count = static_cast<int64_t>(chunks.size()), tiles = params.tiles();
  // Parts have counts of their own, worth it for several events a tile. They take the chunks in turns: in the order of
  // times, all of them have events in every group.
  const int64_t events = params.offsets[params.items] - params.offsets[0];
  const int64_t parts =
      std::max<int64_t>(1, std::min({static_cast<int64_t>(torch::stable::get_num_threads()), count, events / tiles}));
  Tensor counts = allocate(op, like, {parts, tiles}, ScalarType::Long);
  torch::stable::zero_(counts);
  int64_t* places = mutable_data<int64_t>(counts);
  parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(for (int64_t part = first; part < last; ++part) {
      for (int64_t i = part; i < count; i += parts) {
        chunk[i] = count_events<Record>(params, chunk[i], places + part * tiles);
      }
    })
  });
  for (const Chunk& done : chunks) ignored[done.item] += done.end - done.begin - done.used;

  const std::vector<BinGroup> groups = make_groups(params, parts, sizeof(Record), places);
  int64_t most = 0;
  for (const BinGroup& group : groups) most = std::max(most, group.records);
  const int64_t of_bin = params.tiles_of_bin();
  const Tensor storage = allocate(op, like, {most * static_cast<int64_t>(sizeof(Record))}, ScalarType::Byte);
  const Tensor carried = allocate(op, like, {params.height, params.width}, ScalarType::Long);
  Record* records = static_cast<Record*>(storage.mutable_data_ptr());
  int64_t* carry = mutable_data<int64_t>(carried);
  for (const BinGroup& group : groups) {
    const int64_t begin = group.first * of_bin, end = group.last * of_bin;
    parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      FLOWFUSE_VARIANTS(for (int64_t part = first; part < last; ++part) {
        for (int64_t i = part; i < count; i += parts) {
          if (chunk[i].last_tile < begin || chunk[i].first_tile >= end) continue;
          place_events(params, chunk[i], begin, end, places + part * tiles, records);
        }
      })
    });
    const int64_t* ends = places + (parts - 1) * tiles;  // the last part's records of a tile come last
    parallel_for(0, of_bin, 1, [&](int64_t first, int64_t last) {
      alignas(64) CellSums sums[kTileCells] = {};
      for (int64_t tile = first; tile < last; ++tile) {
        const Area area(params, tile);
        FLOWFUSE_VARIANTS(fill_tile(params, area, tile, group.first, group.last, records, ends, sums, carry, voxels))
      }
    });
  }
}

std::tuple<Tensor, Tensor> voxelize(Tensor x, Tensor y, Tensor t, Tensor p, Tensor offsets, Tensor t0, Tensor t1,
                                    int64_t bins, int64_t height, int64_t width) {
  const char* op = "voxelize";
  check_voxelize(op, x, y, t, p, offsets, t0, t1, bins, height, width);
  for (Tensor* tensor : {&x, &y, &t, &p, &offsets, &t0, &t1}) *tensor = torch::stable::contiguous(*tensor);
  const int64_t items = offsets.size(0) - 1;
  const bool rectified = x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double;
  const Voxelize params{
      {x.const_data_ptr(), y.const_data_ptr(), p.const_data_ptr(), data<int64_t>(t), x.scalar_type(), p.scalar_type()},
      data<int64_t>(t0),
      data<int64_t>(t1),
      data<int64_t>(offsets),
      items,
      bins,
      height,
      width,
      rectified};
  check_event_values(op, t.size(0), params.offsets, params.t0, params.t1, items);
  const Tensor voxels = allocate(op, t, {items, bins, height, width}, ScalarType::Float);
  const Tensor ignored = torch::stable::new_zeros(t, {items});
  (rectified ? run<RectifiedRecord> : run<PixelRecord>)(params, t, mutable_data<float>(voxels),
                                                        mutable_data<int64_t>(ignored));
  return {voxels, ignored};
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) { m.impl("voxelize", TORCH_BOX(&flowfuse::cpu::voxelize)); }
