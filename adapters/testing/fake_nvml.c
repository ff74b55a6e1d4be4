/* A scripted libnvidia-ml.so.1: the part of NVML's C interface that this project calls, read from a text file.
 *
 * $LLORCH_FAKE_NVML names the file; it is read anew at each call, so that a test changes GPUs by replacing it.
 * Lines are `key value`; the last of a key counts; `none` makes a fact unsupported. Keys and defaults:
 *
 *   count 1            how many GPUs
 *   init 0             what nvmlInit returns
 *   error 0            what every call but nvmlInit returns
 *   uuid_prefix fake   begins each UUID: GPU-<prefix>-<index>
 *   wait_error 0       what waiting for events returns
 *   gpuN.error 0       what every call about GPU N returns
 *   gpuN.uuid, gpuN.name, gpuN.total_mib 81920, gpuN.used_mib 100, gpuN.util 0
 *   gpuN.ecc_uncorrected 0
 *   gpuN.bus 0000:1N:00.0
 *   gpuN.pids          processes that compute on it, as in 12,34
 *   gpuN.events 11     the mask of event types that it tells of
 *   link.A.B none      NVML's topology level between GPUs A < B
 *   nvlink.A.B 0       whether NVLink joins them
 *   event SEQ GPU TYPE DATA   an event: told once to each event set made while the file held no such SEQ or higher
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Result;
typedef void *Device;
typedef unsigned long long u64;

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, SMALL = 7, TIMEOUT = 10 };
enum { LINE = 512, POLL_US = 10000 };

typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} Pci;
typedef struct { unsigned pid; u64 used; unsigned gi, ci; } Process;
typedef struct { Device device; u64 type, data; unsigned gi, ci; } Event;
typedef struct { long last; u64 gpus; } EventSet;

static FILE *state(void) {
    const char *name = getenv("LLORCH_FAKE_NVML");
    return name ? fopen(name, "r") : NULL;
}

/* The value of the last line with this key, or the default. */
static const char *text(const char *key, const char *otherwise, char *value) {
    char line[LINE];
    size_t length = strlen(key);
    FILE *file = state();
    snprintf(value, LINE, "%s", otherwise);
    if (!file) return value;
    while (fgets(line, LINE, file)) {
        if (strncmp(line, key, length) || line[length] != ' ') continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(value, LINE, "%s", line + length + 1);
    }
    fclose(file);
    return value;
}

static long number(const char *key, long otherwise) {
    char value[LINE], usual[32];
    snprintf(usual, sizeof usual, "%ld", otherwise);
    return strtol(text(key, usual, value), NULL, 0);
}

static long index_of(Device device) { return (long)device - 1; }

static const char *gpu_text(Device device, const char *what, const char *otherwise, char *value) {
    char key[64];
    snprintf(key, sizeof key, "gpu%ld.%s", index_of(device), what);
    return text(key, otherwise, value);
}

static long gpu_number(Device device, const char *what, long otherwise) {
    char key[64];
    snprintf(key, sizeof key, "gpu%ld.%s", index_of(device), what);
    return number(key, otherwise);
}

static Result alive(Device device) {
    long all = number("error", 0);
    return (Result)(all ? all : gpu_number(device, "error", 0));
}

/* A number that a GPU may not support. */
static Result fact(Device device, const char *what, const char *otherwise, u64 *found) {
    char value[LINE];
    Result down = alive(device);
    if (down) return down;
    gpu_text(device, what, otherwise, value);
    if (!strcmp(value, "none")) return UNSUPPORTED;
    *found = strtoull(value, NULL, 0);
    return OK;
}

Result nvmlInitWithFlags(unsigned flags) { (void)flags; return (Result)number("init", 0); }
Result nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
Result nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(Result result) { return result == OK ? "Success" : "an error of the fake driver"; }

Result nvmlSystemGetDriverVersion(char *version, unsigned size) {
    snprintf(version, size, "000.00.fake");
    return OK;
}

Result nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)number("count", 1);
    return (Result)number("error", 0);
}

Result nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    if (index >= (unsigned)number("count", 1)) return INVALID;
    *device = (Device)(long)(index + 1);
    return alive(*device);
}

Result nvmlDeviceGetIndex(Device device, unsigned *index) {
    *index = (unsigned)index_of(device);
    return alive(device);
}

Result nvmlDeviceGetUUID(Device device, char *uuid, unsigned size) {
    char prefix[LINE], usual[LINE + 32], value[LINE];
    snprintf(usual, sizeof usual, "GPU-%.400s-%ld", text("uuid_prefix", "fake", prefix), index_of(device));
    snprintf(uuid, size, "%s", gpu_text(device, "uuid", usual, value));
    return alive(device);
}

Result nvmlDeviceGetName(Device device, char *name, unsigned size) {
    char value[LINE];
    snprintf(name, size, "%s", gpu_text(device, "name", "Fake GPU 80GB", value));
    return alive(device);
}

Result nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    u64 total, used;
    Result result = fact(device, "total_mib", "81920", &total);
    if (!result) result = fact(device, "used_mib", "100", &used);
    if (result) return result;
    memory->total = total << 20;
    memory->used = used << 20;
    memory->free = memory->total - memory->used;
    return OK;
}

Result nvmlDeviceGetUtilizationRates(Device device, Utilization *rates) {
    u64 busy = 0;
    Result result = fact(device, "util", "0", &busy);
    rates->gpu = rates->memory = (unsigned)busy;
    return result;
}

Result nvmlDeviceGetTotalEccErrors(Device device, int type, int counter, u64 *count) {
    (void)counter;
    return type == 1 ? fact(device, "ecc_uncorrected", "0", count) : UNSUPPORTED;
}

Result nvmlDeviceGetPciInfo_v3(Device device, Pci *pci) {
    char usual[32], value[LINE];
    unsigned function;
    Result down = alive(device);
    if (down) return down;
    memset(pci, 0, sizeof *pci);
    snprintf(usual, sizeof usual, "0000:%02lx:00.0", 0x10 + index_of(device));
    gpu_text(device, "bus", usual, value);
    if (sscanf(value, "%x:%x:%x.%x", &pci->domain, &pci->bus, &pci->device, &function) != 4) return UNSUPPORTED;
    snprintf(pci->bus_id, sizeof pci->bus_id, "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
    return OK;
}

Result nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, Process *processes) {
    char value[LINE], *rest = value, *word;
    unsigned room = *count, found = 0;
    Result down = alive(device);
    if (down) return down;
    gpu_text(device, "pids", "", value);
    if (!strcmp(value, "none")) return UNSUPPORTED;
    while ((word = strsep(&rest, ",")) != NULL) {
        if (!*word) continue;
        if (found < room) {
            memset(&processes[found], 0, sizeof(Process));
            processes[found].pid = (unsigned)strtoul(word, NULL, 10);
        }
        found++;
    }
    *count = found;
    return found > room ? SMALL : OK;
}

static void pair(char *key, size_t size, const char *what, Device one, Device other) {
    long a = index_of(one), b = index_of(other);
    snprintf(key, size, "%s.%ld.%ld", what, a < b ? a : b, a < b ? b : a);
}

Result nvmlDeviceGetTopologyCommonAncestor(Device one, Device other, int *level) {
    char key[64], value[LINE];
    pair(key, sizeof key, "link", one, other);
    text(key, "none", value);
    if (!strcmp(value, "none")) return UNSUPPORTED;
    *level = atoi(value);
    return alive(one);
}

Result nvmlDeviceGetP2PStatus(Device one, Device other, int what, int *status) {
    char key[64];
    (void)what;
    pair(key, sizeof key, "nvlink", one, other);
    *status = number(key, 0) ? 0 : 5;
    return alive(one);
}

Result nvmlDeviceGetSupportedEventTypes(Device device, u64 *types) { return fact(device, "events", "11", types); }

/* The first event after `last` on one of the GPUs in the bit mask; with none, the highest sequence number. */
static long next_event(long last, u64 gpus, Event *event) {
    char line[LINE];
    long sequence, gpu, best = 0, highest = last;
    u64 type, data;
    FILE *file = state();
    if (!file) return last;
    while (fgets(line, LINE, file)) {
        if (sscanf(line, "event %ld %ld %llu %llu", &sequence, &gpu, &type, &data) != 4) continue;
        if (sequence > highest) highest = sequence;
        if (sequence <= last || !(gpus >> gpu & 1) || (best && sequence > best)) continue;
        best = sequence;
        *event = (Event){(Device)(gpu + 1), type, data, 0xffffffff, 0xffffffff};
    }
    fclose(file);
    return event->type ? best : highest;
}

Result nvmlEventSetCreate(EventSet **set) {
    Event none = {0};
    if (number("error", 0)) return (Result)number("error", 0);
    *set = calloc(1, sizeof(EventSet));
    (*set)->last = next_event(0, 0, &none);
    return OK;
}

Result nvmlEventSetFree(EventSet *set) {
    free(set);
    return OK;
}

Result nvmlDeviceRegisterEvents(Device device, u64 types, EventSet *set) {
    u64 known = 0;
    Result result = fact(device, "events", "11", &known);
    if (result) return result;
    if (types & ~known) return UNSUPPORTED;
    set->gpus |= 1ull << index_of(device);
    return OK;
}

Result nvmlEventSetWait_v2(EventSet *set, Event *event, unsigned timeout_ms) {
    Result down;
    for (long left_us = (long)timeout_ms * 1000;; left_us -= POLL_US) {
        memset(event, 0, sizeof *event);
        for (long gpu = 0; gpu < 64; gpu++)
            if ((set->gpus >> gpu & 1) && (down = alive((Device)(gpu + 1)))) return down;
        if ((down = (Result)number("wait_error", 0))) return down;
        set->last = next_event(set->last, set->gpus, event);
        if (event->type) return OK;
        if (left_us <= 0) return TIMEOUT;
        usleep(POLL_US);
    }
}
