/* A TCG plugin of QEMU that counts the guest instructions between two marker functions, exactly.
 *
 *   -plugin insn_count.so,begin=0xADDR,end=0xADDR,fd=N[,symbols=M][,log=L]
 *
 * fd:      an open file that is rewritten at the end of each region: "instructions N\nregions K\n",
 * and with symbols one line "function N NAME" for each function that executed an instruction.
 * log:     an open file that gets a line "BEFORE INSIDE" for each region: what ran since the last
 *          region's end (or since the start), and what ran in it.
 * symbols: an open file with lines "ADDR SIZE NAME" (hexadecimal), as `nm -S` knows them.
 *
 * Built for version 1 of the plugin interface (QEMU 4.2 to 8.x); the declarations below are all it
 * needs. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info;
enum {
  NO_REGISTERS = 0
};
enum {
  INLINE_ADD_U64 = 0
};

typedef void (*translate_callback)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*execute_callback)(unsigned, void *);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translate_callback);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, execute_callback, int,
                                            void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
EXPORT int qemu_plugin_install(qemu_plugin_id_t, const struct qemu_info *, int, char **);

EXPORT int qemu_plugin_version = 1;

typedef struct {
  uint64_t lower;
  uint64_t upper;
  uint64_t count;
  uint64_t at_begin;
  char name[120];
} function_counter;

static uint64_t total;
static uint64_t total_at_begin;
static uint64_t regions;
static uint64_t begin_address;
static uint64_t end_address;
static uint64_t total_at_end;
static int output = -1;
static int region_log = -1;
static bool inside;
static function_counter *functions;
static size_t function_count;
static function_counter elsewhere = {0, 0, 0, 0, "?"};

static function_counter *find(uint64_t address) {
  size_t low = 0;
  size_t high = function_count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (address < functions[middle].lower) {
      high = middle;
    } else if (address >= functions[middle].upper) {
      low = middle + 1;
    } else {
      return &functions[middle];
    }
  }
  return &elsewhere;
}

static void on_begin(unsigned cpu, void *unused) {
  (void)cpu;
  (void)unused;
  inside = true;
  total_at_begin = total;
  for (size_t i = 0; i < function_count; i++) {
    functions[i].at_begin = functions[i].count;
  }
  elsewhere.at_begin = elsewhere.count;
}

static void print_function(const function_counter *function) {
  uint64_t count = function->count - function->at_begin;
  if (count > 0) {
    dprintf(output, "function %llu %s\n", (unsigned long long)count, function->name);
  }
}

static void on_end(unsigned cpu, void *unused) {
  (void)cpu;
  (void)unused;
  if (!inside) {
    return;
  }
  inside = false;
  regions++;
  if (region_log >= 0) {
    dprintf(region_log, "%llu %llu\n", (unsigned long long)(total_at_begin - total_at_end),
            (unsigned long long)(total - total_at_begin));
  }
  total_at_end = total;
  if (lseek(output, 0, SEEK_SET) < 0 || ftruncate(output, 0) < 0) {
    return;
  }
  dprintf(output, "instructions %llu\nregions %llu\n", (unsigned long long)(total - total_at_begin),
          (unsigned long long)regions);
  for (size_t i = 0; i < function_count; i++) {
    print_function(&functions[i]);
  }
  if (function_count > 0) {
    print_function(&elsewhere);
  }
}

/* Counts whole blocks: a block ends at each call and branch, so the markers begin a block of their
 * own. */
static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  (void)id;
  size_t count = qemu_plugin_tb_n_insns(block);
  struct qemu_plugin_insn *first = qemu_plugin_tb_get_insn(block, 0);
  uint64_t address = qemu_plugin_insn_vaddr(first);
  qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &total, count);
  if (function_count > 0) {
    qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &find(address)->count, count);
  }
  if (address == begin_address) {
    qemu_plugin_register_vcpu_insn_exec_cb(first, on_begin, NO_REGISTERS, NULL);
  } else if (address == end_address) {
    qemu_plugin_register_vcpu_insn_exec_cb(first, on_end, NO_REGISTERS, NULL);
  }
}

static int compare_functions(const void *left, const void *right) {
  const function_counter *a = left;
  const function_counter *b = right;
  return a->lower < b->lower ? -1 : a->lower > b->lower;
}

static int read_symbols(int descriptor) {
  FILE *file = fdopen(descriptor, "r");
  if (file == NULL) {
    return -1;
  }
  size_t capacity = 0;
  function_counter one;
  unsigned long long address;
  unsigned long long size;
  memset(&one, 0, sizeof one);
  while (fscanf(file, "%llx %llx %119s", &address, &size, one.name) == 3) {
    if (function_count == capacity) {
      capacity = capacity * 2 + 256;
      function_counter *grown = realloc(functions, capacity * sizeof *functions);
      if (grown == NULL) {
        return -1;
      }
      functions = grown;
    }
    one.lower = address & ~1ull;
    one.upper = one.lower + size;
    functions[function_count++] = one;
  }
  qsort(functions, function_count, sizeof *functions, compare_functions);
  return 0;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc,
                               char **argv) {
  (void)info;
  for (int i = 0; i < argc; i++) {
    char *value = strchr(argv[i], '=');
    if (value == NULL) {
      return -1;
    }
    uint64_t number = strtoull(++value, NULL, 0);
    if (strncmp(argv[i], "begin=", 6) == 0) {
      begin_address = number & ~1ull;
    } else if (strncmp(argv[i], "end=", 4) == 0) {
      end_address = number & ~1ull;
    } else if (strncmp(argv[i], "fd=", 3) == 0) {
      output = (int)number;
    } else if (strncmp(argv[i], "log=", 4) == 0) {
      region_log = (int)number;
    } else if (strncmp(argv[i], "symbols=", 8) != 0 || read_symbols((int)number) != 0) {
      return -1;
    }
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
  return 0;
}
