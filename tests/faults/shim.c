/* Faults in system calls that write below one folder, and a clock that is wrong: preloaded into a process.

   Every interposed call below the folder is counted over a process and the processes that it forks. The call of a
   chosen number fails, writes a half, or ends its process with SIGKILL. What happened is left in memory that the
   forks share with the process that forked them. Nothing is synced to the disk: what a kill leaves does not depend
   on it, and thousands of runs do not wait. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum mode { NOTHING, FAIL, SHORT, KILL_BEFORE, KILL_AFTER, KILL_HALFWAY };

struct state {
    char folder[512];    /* calls below it count */
    long at;             /* number of the first call that is hit, from 1; 0: none */
    long times;          /* how many calls in a row are hit */
    enum mode mode;
    int error;           /* errno of a call that fails */
    long calls;          /* counted so far */
    long fired;          /* hit so far */
    long events;         /* see faults_event */
    char hit[640];       /* what the first hit call was, and of which file */
};

static struct state *shared;
static int joined;       /* whether this process counts; forks inherit it */
static long skew;        /* seconds that its wall clock is wrong */

/* Also for a process whose forks are counted apart from those of the process that forked it. */
__attribute__((constructor)) void faults_begin(void) {
    void *memory = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared = memory == MAP_FAILED ? NULL : memory;
}

void faults_reset(const char *folder, long at, long times, int mode, int error) {
    memset(shared, 0, sizeof *shared);
    snprintf(shared->folder, sizeof shared->folder, "%s/", folder);
    shared->at = at;
    shared->times = times;
    shared->mode = mode;
    shared->error = error;
}

void faults_join(int counts) { joined = counts; }
void faults_skew(long seconds) { skew = seconds; }
long faults_calls(void) { return shared->calls; }
long faults_fired(void) { return shared->fired; }
const char *faults_hit(void) { return shared->hit; }

/* Number of an event of the test's own, from 1, counted over the same processes. */
long faults_event(void) { return __sync_add_and_fetch(&shared->events, 1); }

static enum mode hit(const char *call, const char *path) {
    if (!joined || !shared || strncmp(path, shared->folder, strlen(shared->folder)) != 0)
        return NOTHING;
    long number = __sync_add_and_fetch(&shared->calls, 1);
    if (!shared->at || number < shared->at || number >= shared->at + shared->times)
        return NOTHING;
    if (__sync_add_and_fetch(&shared->fired, 1) == 1)
        snprintf(shared->hit, sizeof shared->hit, "%s %s", call, path + strlen(shared->folder));
    if (shared->mode == SHORT && number > shared->at)
        return FAIL;     /* a disk that took a half has no room for the rest */
    return shared->mode;
}

static const char *path_of(int descriptor, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, size - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

static const char *path_at(int folder, const char *name, char *path, size_t size) {
    if (name[0] == '/')
        return name;
    if (folder == AT_FDCWD) {
        if (!getcwd(path, size))
            path[0] = 0;
    } else {
        path_of(folder, path, size);
    }
    size_t length = strlen(path);
    snprintf(path + length, size - length, "/%s", name);
    return path;
}

static void end(void) { kill(getpid(), SIGKILL); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* A call that has no halves: it fails, or its process ends before or after it. */
#define WHOLE(call, path, made)                              \
    do {                                                     \
        enum mode mode_ = hit(call, path);                   \
        if (mode_ == FAIL || mode_ == SHORT) {               \
            errno = shared->error;                           \
            return -1;                                       \
        }                                                    \
        if (mode_ == KILL_BEFORE)                            \
            end();                                           \
        int done_ = (made);                                  \
        if (mode_ == KILL_AFTER || mode_ == KILL_HALFWAY)    \
            end();                                           \
        return done_;                                        \
    } while (0)

/* A write: as above, or a half of it is made. */
#define HALVED(call, descriptor, count, made)                \
    do {                                                     \
        char place_[512];                                    \
        enum mode mode_ = hit(call, path_of(descriptor, place_, sizeof place_)); \
        size_t count_ = (count);                             \
        if (mode_ == FAIL || (mode_ == SHORT && count_ < 2)) { \
            errno = shared->error;                           \
            return -1;                                       \
        }                                                    \
        if (mode_ == KILL_BEFORE)                            \
            end();                                           \
        size_t taken = mode_ == SHORT || mode_ == KILL_HALFWAY ? count_ / 2 : count_; \
        ssize_t done_ = (made);                              \
        if (mode_ == KILL_AFTER || mode_ == KILL_HALFWAY)    \
            end();                                           \
        return done_;                                        \
    } while (0)

#define OPENED(name, folder, path, flags, made)              \
    do {                                                     \
        char place_[512];                                    \
        if (!((flags) & O_CREAT))                            \
            return made;                                     \
        WHOLE(name, path_at(folder, path, place_, sizeof place_), made); \
    } while (0)

#define MODE_ARGUMENT(flags)                                 \
    mode_t mode = 0;                                         \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {                 \
        va_list rest;                                        \
        va_start(rest, flags);                               \
        mode = va_arg(rest, mode_t);                         \
        va_end(rest);                                        \
    }

int open(const char *path, int flags, ...) {
    MODE_ARGUMENT(flags)
    OPENED("open", AT_FDCWD, path, flags, REAL(open)(path, flags, mode));
}

int open64(const char *path, int flags, ...) {
    MODE_ARGUMENT(flags)
    OPENED("open", AT_FDCWD, path, flags, REAL(open64)(path, flags, mode));
}

int openat(int folder, const char *path, int flags, ...) {
    MODE_ARGUMENT(flags)
    OPENED("open", folder, path, flags, REAL(openat)(folder, path, flags, mode));
}

int openat64(int folder, const char *path, int flags, ...) {
    MODE_ARGUMENT(flags)
    OPENED("open", folder, path, flags, REAL(openat64)(folder, path, flags, mode));
}

ssize_t write(int descriptor, const void *bytes, size_t count) {
    if (!joined)
        return REAL(write)(descriptor, bytes, count);
    HALVED("write", descriptor, count, REAL(write)(descriptor, bytes, taken));
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t offset) {
    HALVED("pwrite", descriptor, count, REAL(pwrite64)(descriptor, bytes, taken, offset));
}

int fsync(int descriptor) {
    char place[512];
    WHOLE("fsync", path_of(descriptor, place, sizeof place), 0);
}

int fdatasync(int descriptor) {
    char place[512];
    WHOLE("fdatasync", path_of(descriptor, place, sizeof place), 0);
}

int ftruncate64(int descriptor, off64_t length) {
    char place[512];
    WHOLE("ftruncate", path_of(descriptor, place, sizeof place), REAL(ftruncate64)(descriptor, length));
}

int rename(const char *old, const char *new) {
    char place[512];
    WHOLE("rename", path_at(AT_FDCWD, new, place, sizeof place), REAL(rename)(old, new));
}

int unlink(const char *path) {
    char place[512];
    WHOLE("unlink", path_at(AT_FDCWD, path, place, sizeof place), REAL(unlink)(path));
}

int unlinkat(int folder, const char *path, int flags) {
    char place[512];
    WHOLE("unlink", path_at(folder, path, place, sizeof place), REAL(unlinkat)(folder, path, flags));
}

int mkdir(const char *path, mode_t mode) {
    char place[512];
    WHOLE("mkdir", path_at(AT_FDCWD, path, place, sizeof place), REAL(mkdir)(path, mode));
}

int rmdir(const char *path) {
    char place[512];
    WHOLE("rmdir", path_at(AT_FDCWD, path, place, sizeof place), REAL(rmdir)(path));
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME)
        now->tv_sec += skew;
    return done;
}

int gettimeofday(struct timeval *now, void *zone) {
    int done = REAL(gettimeofday)(now, zone);
    now->tv_sec += skew;
    return done;
}

time_t time(time_t *place) {
    time_t now = REAL(time)(NULL) + skew;
    if (place)
        *place = now;
    return now;
}
