#include "tt_checkpoint.h"

#include <string.h>

#define TRAILER 4u

static const char magic[4] = {'T', 'T', 'C', 'K'};

/* A sink behind which the CRC is computed. */
typedef struct {
  tt_checkpoint_sink sink;
  void *context;
  uint32_t crc;
  int status;
} stream;

static uint32_t crc32(uint32_t crc, const unsigned char *bytes, size_t count) {
  static const uint32_t table[16] = {0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu,
                                     0x76dc4190u, 0x6b6b51f4u, 0x4db26158u, 0x5005713cu,
                                     0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu,
                                     0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu};
  for (size_t i = 0; i < count; i++) {
    crc ^= bytes[i];
    crc = (crc >> 4) ^ table[crc & 15u];
    crc = (crc >> 4) ^ table[crc & 15u];
  }
  return crc;
}

static void put(stream *to, const void *bytes, size_t count) {
  if (to->status == TT_OK && count != 0) {
    to->crc = crc32(to->crc, bytes, count);
    to->status = to->sink(to->context, bytes, count);
  }
}

static void put_number(stream *to, uint32_t value, uint32_t count) {
  unsigned char bytes[4];
  for (uint32_t i = 0; i < count; i++) {
    bytes[i] = (unsigned char)(value >> (8 * i));
  }
  put(to, bytes, count);
}

static uint32_t number(const unsigned char *bytes, uint32_t count) {
  uint32_t value = 0;
  for (uint32_t i = count; i-- > 0;) {
    value = value << 8 | bytes[i];
  }
  return value;
}

static uint32_t all_channels(const tt_rows_table *table) {
  uint32_t total = 0;
  for (uint32_t c = 0; c < table->num_candidates; c++) {
    total += table->channels[c];
  }
  return total;
}

static uint32_t bitmap_bytes(uint32_t channels) { return (channels + 31) / 32 * 4; }

static const uint32_t *rows_of(const uint32_t *plan) { return plan + TT_PLAN_ROWS; }

static const unsigned char *tensor_at(const tt_rows_table *table, const uint32_t *plan,
                                      const unsigned char *arena, uint32_t tensor) {
  return arena + rows_of(plan)[table->num_candidates + tensor];
}

static uint32_t payload_bytes(const tt_rows_table *table, const uint32_t *plan) {
  uint32_t bytes = 0;
  for (uint32_t t = 0; t < table->num_tensors; t++) {
    if (table->tensors[t].kind == TT_ROWS_COPY) {
      bytes += rows_of(plan)[table->tensors[t].candidate] * table->tensors[t].row_bytes;
    }
  }
  return bytes;
}

size_t tt_checkpoint_size(const tt_rows_table *table, const uint32_t *plan) {
  if (!tt_rows_is_trained(table, plan)) {
    return 0;
  }
  return TT_CHECKPOINT_HEADER + bitmap_bytes(all_channels(table)) + payload_bytes(table, plan) +
         TRAILER;
}

/* The list of a candidate's trained channels, NULL if the table has none. */
static const unsigned char *list_of(const tt_rows_table *table, const uint32_t *plan,
                                    const unsigned char *arena, uint32_t candidate) {
  for (uint32_t t = 0; t < table->num_tensors; t++) {
    if (table->tensors[t].kind == TT_ROWS_CHANNELS && table->tensors[t].candidate == candidate) {
      return tensor_at(table, plan, arena, t);
    }
  }
  return NULL;
}

static uint32_t channel_at(const unsigned char *list, uint32_t row) {
  uint32_t channel;
  memcpy(&channel, list + row * sizeof channel, sizeof channel);
  return channel;
}

/* Whether all channel lists ascend within their candidate. */
static int lists_are_sound(const tt_rows_table *table, const uint32_t *plan,
                           const unsigned char *arena) {
  for (uint32_t c = 0; c < table->num_candidates; c++) {
    const uint32_t rows = rows_of(plan)[c];
    const unsigned char *const list = list_of(table, plan, arena, c);
    if (rows > table->channels[c] || (rows != 0 && list == NULL)) {
      return 0;
    }
    for (uint32_t row = 0; row < rows; row++) {
      const uint32_t channel = channel_at(list, row);
      if (channel >= table->channels[c] || (row != 0 && channel <= channel_at(list, row - 1))) {
        return 0;
      }
    }
  }
  return 1;
}

static void put_bitmap(stream *to, const tt_rows_table *table, const uint32_t *plan,
                       const unsigned char *arena) {
  uint32_t bits = 0; /* of the word that is being filled */
  uint32_t at = 0;
  for (uint32_t c = 0; c < table->num_candidates; c++) {
    const unsigned char *const list = list_of(table, plan, arena, c);
    uint32_t row = 0;
    for (uint32_t channel = 0; channel < table->channels[c]; channel++) {
      if (row < rows_of(plan)[c] && channel_at(list, row) == channel) {
        bits |= (uint32_t)1 << (at & 31);
        row++;
      }
      if ((++at & 31) == 0) {
        put_number(to, bits, 4);
        bits = 0;
      }
    }
  }
  if ((at & 31) != 0) {
    put_number(to, bits, 4);
  }
}

int tt_checkpoint_save(const tt_rows_table *table, const char *digest, const uint32_t *plan,
                       const unsigned char *arena, tt_checkpoint_sink sink, void *context) {
  stream to = {sink, context, 0xffffffffu, TT_OK};
  const uint32_t channels = all_channels(table);
  uint32_t trained = 0;
  if (!tt_rows_is_trained(table, plan)) {
    return TT_ERR_STATE;
  }
  if (!lists_are_sound(table, plan, arena)) {
    return TT_ERR_BAD_VALUE;
  }
  for (uint32_t c = 0; c < table->num_candidates; c++) {
    trained += rows_of(plan)[c];
  }
  put(&to, magic, sizeof magic);
  put_number(&to, TT_CHECKPOINT_VERSION, 2);
  put_number(&to, TT_CHECKPOINT_HEADER, 2);
  put(&to, digest, TT_CHECKPOINT_DIGEST);
  put_number(&to, channels, 4);
  put_number(&to, trained, 4);
  put_number(&to, payload_bytes(table, plan), 4);
  put_number(&to, (uint32_t)tt_checkpoint_size(table, plan), 4);
  put_bitmap(&to, table, plan, arena);
  for (uint32_t t = 0; t < table->num_tensors; t++) {
    const tt_row_tensor *const tensor = &table->tensors[t];
    if (tensor->kind == TT_ROWS_COPY) {
      put(&to, tensor_at(table, plan, arena, t),
          (size_t)rows_of(plan)[tensor->candidate] * tensor->row_bytes);
    }
  }
  put_number(&to, ~to.crc, 4);
  return to.status;
}

static int append(void *context, const void *bytes, size_t count) {
  unsigned char **const at = (unsigned char **)context;
  memcpy(*at, bytes, count);
  *at += count;
  return TT_OK;
}

int tt_checkpoint_write(const tt_rows_table *table, const char *digest, const uint32_t *plan,
                        const unsigned char *arena, void *buffer, size_t capacity) {
  unsigned char *at = (unsigned char *)buffer;
  if (tt_checkpoint_size(table, plan) > capacity) {
    return TT_ERR_RANGE;
  }
  return tt_checkpoint_save(table, digest, plan, arena, append, &at);
}

static uint32_t count_bits(const unsigned char *bitmap, uint32_t first, uint32_t bits) {
  uint32_t total = 0;
  for (uint32_t bit = first; bit < first + bits; bit++) {
    total += bitmap[bit >> 3] >> (bit & 7) & 1u;
  }
  return total;
}

/* Whether the header's numbers follow from the bit map and the table. */
static int is_consistent(const tt_rows_table *table, const unsigned char *file, uint32_t channels,
                         uint32_t trained, uint32_t payload) {
  const unsigned char *const bitmap = file + TT_CHECKPOINT_HEADER;
  uint64_t needed = 0;
  for (uint32_t t = 0; t < table->num_tensors; t++) {
    const tt_row_tensor *const tensor = &table->tensors[t];
    uint32_t first = 0;
    for (uint32_t c = 0; c < tensor->candidate; c++) {
      first += table->channels[c];
    }
    if (tensor->kind == TT_ROWS_COPY) {
      needed += (uint64_t)count_bits(bitmap, first, table->channels[tensor->candidate]) *
                tensor->row_bytes;
    }
  }
  const uint32_t filled = 8 * bitmap_bytes(channels) - channels;
  return trained != 0 && needed == payload && count_bits(bitmap, 0, channels) == trained &&
         count_bits(bitmap, channels, filled) == 0;
}

int tt_checkpoint_check(const tt_rows_table *table, const char *digest, const void *bytes,
                        size_t count) {
  const unsigned char *const file = (const unsigned char *)bytes;
  if (count < TT_CHECKPOINT_HEADER + TRAILER) {
    return TT_ERR_TORN;
  }
  if (memcmp(file, magic, sizeof magic) != 0 || number(file + 4, 2) != TT_CHECKPOINT_VERSION ||
      number(file + 6, 2) != TT_CHECKPOINT_HEADER) {
    return TT_ERR_VERSION;
  }
  const uint32_t channels = number(file + 24, 4);
  const uint32_t payload = number(file + 32, 4);
  const uint32_t total = number(file + 36, 4);
  const uint64_t parts =
      TT_CHECKPOINT_HEADER + ((uint64_t)channels + 31) / 32 * 4 + (uint64_t)payload + TRAILER;
  if (parts != total || total > count ||
      ~crc32(0xffffffffu, file, total - TRAILER) != number(file + total - TRAILER, TRAILER)) {
    return TT_ERR_TORN;
  }
  if (memcmp(file + 8, digest, TT_CHECKPOINT_DIGEST) != 0 || channels != all_channels(table)) {
    return TT_ERR_FOREIGN;
  }
  return is_consistent(table, file, channels, number(file + 28, 4), payload) ? TT_OK
                                                                             : TT_ERR_BAD_VALUE;
}

int tt_checkpoint_load(const tt_rows_table *table, const char *digest, const void *bytes,
                       size_t count, uint32_t *plan, unsigned char *arena) {
  const unsigned char *const file = (const unsigned char *)bytes;
  int status = tt_checkpoint_check(table, digest, bytes, count);
  if (status == TT_OK) {
    status = tt_rows_install(table, plan, file + TT_CHECKPOINT_HEADER, arena);
  }
  if (status != TT_OK) {
    return status;
  }
  const unsigned char *from = file + TT_CHECKPOINT_HEADER + bitmap_bytes(number(file + 24, 4));
  for (uint32_t t = 0; t < table->num_tensors; t++) {
    const tt_row_tensor *const tensor = &table->tensors[t];
    const size_t size = (size_t)rows_of(plan)[tensor->candidate] * tensor->row_bytes;
    if (tensor->kind == TT_ROWS_COPY) {
      memcpy(arena + rows_of(plan)[table->num_candidates + t], from, size);
      from += size;
    }
  }
  return TT_OK;
}
