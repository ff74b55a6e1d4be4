/* The time of day, moved: preloaded into a process, it adds an offset to what the C library's clocks tell.
 *
 * The offset (int64, nanoseconds) is read from the file that $LLORCH_CLOCK_OFFSET names, mapped once, so a change is
 * seen by all processes at once. Only the time of day moves; CLOCK_MONOTONIC and the like are left alone, as they are
 * when an administrator or NTP sets the clock.
 *
 * Serve's controller and proxies keep the true time: they plan their health checks by the time of day, and after a
 * step back they bring nothing back until that time comes again. A worker of Ray says in its title what it is; it gets
 * that some time after its start, so the title is looked at again now and then.
 *
 * Callers in Ray's own compiled part keep the true time too, also where they ask through the C++ library, and so does a
 * worker of Ray that starts and has no title yet. They hand times of day to the kernel ("wake me at ..."), and the
 * kernel's clock is not moved: such a wait would end at once or never, which no real step of the clock does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

#define TITLE_NS (SECOND / 2)

static const volatile int64_t *offset;
/* What runs the service among Ray's workers. */
static const char *const ours[] = {"ray::SchedulerActor", "ray::ReplicaActor", "ray::PoolManagerActor",
                                   "ray::ServeReplica"};

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("LLORCH_CLOCK_OFFSET");
    /* Ray's daemons are no part of the service. */
    const char *name = program_invocation_short_name;
    if (!path || !strcmp(name, "raylet") || !strcmp(name, "gcs_server"))
        return;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    void *there = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (there != MAP_FAILED)
        offset = there;
}

static int64_t true_ns(clockid_t clock) {
    static int (*real)(clockid_t, struct timespec *);
    struct timespec now;
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    real(clock, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

enum reader { TRUE_TIME, MOVED, MOVED_BUT_RAY };

/* Who this process is, by its command line: Ray writes a worker's title there. */
static enum reader reader_of(void) {
    char line[4096] = "";
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return TRUE_TIME;
    ssize_t length = read(file, line, sizeof line - 1);
    close(file);
    if (length <= 0)
        return TRUE_TIME;
    if (strncmp(line, "ray::", 5)) /* an engine, or a worker that starts */
        return memmem(line, length, "default_worker.py", strlen("default_worker.py")) ? TRUE_TIME : MOVED;
    for (size_t n = 0; n < sizeof ours / sizeof *ours; n++)
        if (!strncmp(line, ours[n], strlen(ours[n])))
            return MOVED_BUT_RAY;
    return TRUE_TIME;
}

static int is_rays(const void *caller) {
    Dl_info who;
    return dladdr(caller, &who) && who.dli_fname &&
           (strstr(who.dli_fname, "_raylet") || strstr(who.dli_fname, "libstdc++"));
}

static int64_t moved_by(const void *caller) {
    static volatile int64_t looked_ns = -TITLE_NS;
    static volatile enum reader reader;
    int64_t by = offset ? *offset : 0;
    if (!by)
        return 0;
    int64_t now_ns = true_ns(CLOCK_MONOTONIC);
    if (now_ns - looked_ns >= TITLE_NS) {
        looked_ns = now_ns;
        reader = reader_of();
    }
    return reader == TRUE_TIME || (reader == MOVED_BUT_RAY && is_rays(caller)) ? 0 : by;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return failed;
    int64_t by = moved_by(__builtin_return_address(0));
    if (by) {
        int64_t ns = now->tv_sec * SECOND + now->tv_nsec + by;
        now->tv_sec = ns / SECOND;
        now->tv_nsec = ns % SECOND;
    }
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    int64_t ns = true_ns(CLOCK_REALTIME) + moved_by(__builtin_return_address(0));
    now->tv_sec = ns / SECOND;
    now->tv_usec = ns % SECOND / 1000;
    return 0;
}

time_t time(time_t *into) {
    time_t seconds = (true_ns(CLOCK_REALTIME) + moved_by(__builtin_return_address(0))) / SECOND;
    if (into)
        *into = seconds;
    return seconds;
}
