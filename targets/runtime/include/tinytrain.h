/* The vocabulary between an emitted library and its caller: tensors, entries, status codes.
 * A library allocates nothing and writes nothing but the one arena that its caller owns. One with a
 * cache in a pool of its own (cache_bytes) writes that pool too, which is static: what one arena
 * has stored there is lost when another arena of this library stores. */
#ifndef TINYTRAIN_H
#define TINYTRAIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TT_ABI_VERSION 1
#define TT_MAX_NDIM 6

/* What an entry returns. */
typedef enum {
  TT_OK = 0,
  TT_ERR_ARENA_NULL = -1,  /* the arena is NULL */
  TT_ERR_ARENA_SMALL = -2, /* the arena has fewer bytes than tt_library.arena_bytes */
  TT_ERR_ARENA_ALIGN = -3, /* the arena is not aligned to tt_library.arena_align */
  TT_ERR_BAD_VALUE = -4,   /* a tensor that the caller wrote holds a value out of its range */
  TT_ERR_NO_ENTRY = -5,    /* no such entry */
  TT_ERR_NO_TENSOR = -6,   /* no such tensor */
  TT_ERR_RANGE = -7,       /* bytes outside of a tensor */
  TT_ERR_READ_ONLY = -8,   /* the tensor is in flash */
  TT_ERR_GUARD = -9,       /* the arena's guard words were overwritten */
  TT_ERR_STATE = -10,      /* the call is not allowed before another one */
  TT_ERR_BUDGET = -11,     /* not even the frozen network keeps the memory budget */
  TT_ERR_TORN = -12,       /* a checkpoint is cut short or damaged */
  TT_ERR_VERSION = -13,    /* a checkpoint of another format, or no checkpoint */
  TT_ERR_FOREIGN = -14,    /* a checkpoint of another library */
  TT_ERR_NO_IMAGE = -15    /* the input is no float32[1][channels][height][width] */
} tt_status;

typedef enum {
  TT_FLOAT32 = 0,
  TT_INT32 = 1,
  TT_UINT8 = 2,
  TT_INT8 = 3,
  TT_FLOAT16 = 4
} tt_dtype;

typedef enum {
  TT_ROLE_INPUT = 0,
  TT_ROLE_LABEL,
  TT_ROLE_OUTPUT,
  TT_ROLE_LOSS,
  TT_ROLE_PARAM, /* trainable, in the arena */
  TT_ROLE_CONST, /* in flash */
  TT_ROLE_STATE, /* of the optimizer */
  TT_ROLE_GRAD,
  TT_ROLE_FISHER,
  TT_ROLE_PLAN
} tt_role;

/* One tensor, row-major and dense. */
typedef struct {
  const char *name;
  uint8_t dtype; /* tt_dtype */
  uint8_t role;  /* tt_role */
  uint8_t ndim;  /* 0 .. TT_MAX_NDIM: of more axes the first ones are one */
  uint8_t flags; /* 0 */
  uint32_t shape[TT_MAX_NDIM];
  uint32_t bytes;
  uint32_t offset;  /* in the arena, when data == NULL */
  const void *data; /* in flash, else NULL */
} tt_tensor;

/* 0 = ok, negative = tt_status. */
typedef int (*tt_entry_fn)(void *arena);

typedef struct {
  const char *name;
  tt_entry_fn run;
} tt_entry;

/* "init" is the first entry. Nothing is said of the others' order: they are found by name. */
typedef struct {
  const char *name;
  const char *version;
  const char *digest; /* of the update plan and the options, in hexadecimal digits */
  uint32_t arena_bytes;
  uint32_t arena_align;
  uint32_t num_tensors;
  const tt_tensor *tensors;
  uint32_t num_entries;
  const tt_entry *entries;
} tt_library;

#ifdef __cplusplus
}
#endif

#endif /* TINYTRAIN_H */
