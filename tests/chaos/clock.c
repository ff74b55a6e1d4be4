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
 * Callers in Ray's own compiled part keep the true time too. They hand times of day to the kernel ("wake me at ..."), and
 * the kernel's clock is not moved: such a wait would end at once or never, which no real step of the clock does.
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

static int reads_moved_clock(void) {
    char title[64] = "";
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, title, sizeof title - 1);
    close(file);
    if (length <= 0 || strncmp(title, "ray::", 5))
        return length > 0; /* an engine, or what is no worker of Ray */
    for (size_t n = 0; n < sizeof ours / sizeof *ours; n++)
        if (!strncmp(title, ours[n], strlen(ours[n])))
            return 1;
    return 0;
}

static int64_t moved_by(const void *caller) {
    static volatile int64_t looked_ns = -TITLE_NS;
    static volatile int is_ours;
    int64_t by = offset ? *offset : 0;
    if (!by)
        return 0;
    int64_t now_ns = true_ns(CLOCK_MONOTONIC);
    if (now_ns - looked_ns >= TITLE_NS) {
        looked_ns = now_ns;
        is_ours = reads_moved_clock();
    }
    Dl_info who;
    if (!is_ours || (dladdr(caller, &who) && who.dli_fname && strstr(who.dli_fname, "_raylet")))
        return 0;
    return by;
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
