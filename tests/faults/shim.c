/* Preloaded into a daemon, so that its clocks and its disk do what a test wants. The test writes to a file that is mapped here.
   Of the disk only regular files count, and not standard output and error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t wall_s, boot_s; /* added to CLOCK_REALTIME, to CLOCK_BOOTTIME */
    int64_t sync_error, write_error; /* errno of every fsync, of every write; 0: none */
    int64_t kill_at, operations; /* SIGKILL before this change of a file; how many there were */
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("IPOP_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    control = mapped == MAP_FAILED ? NULL : mapped;
    close(fd);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t clock, struct timespec *moment) {
    static __typeof__(&clock_gettime) real;
    if (!real) real = REAL(clock_gettime);
    int status = real(clock, moment);
    if (!status && control) {
        if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) moment->tv_sec += control->wall_s;
        if (clock == CLOCK_BOOTTIME) moment->tv_sec += control->boot_s;
    }
    return status;
}

int gettimeofday(struct timeval *moment, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    moment->tv_sec = now.tv_sec;
    moment->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}

static int changes(int fd) {
    struct stat found;
    if (!control || fd < 3 || fstat(fd, &found) || !S_ISREG(found.st_mode)) return 0;
    return 1;
}

static void operation(void) {
    if (control && __sync_add_and_fetch(&control->operations, 1) == control->kill_at) kill(getpid(), SIGKILL);
}

static int fails(int fd) {
    if (!changes(fd)) return 0;
    operation();
    errno = (int)control->write_error;
    return errno != 0;
}

ssize_t write(int fd, const void *data, size_t size) { return fails(fd) ? -1 : REAL(write)(fd, data, size); }

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return fails(fd) ? -1 : REAL(pwrite)(fd, data, size, at); }

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return fails(fd) ? -1 : REAL(pwrite64)(fd, data, size, at); }

static int unsynced(int fd) {
    if (!control) return 0;
    if (changes(fd)) operation();
    errno = (int)control->sync_error;
    return errno != 0;
}

int fsync(int fd) { return unsynced(fd) ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return unsynced(fd) ? -1 : REAL(fdatasync)(fd); }

int rename(const char *from, const char *to) {
    operation();
    if (control && control->write_error) {
        errno = (int)control->write_error;
        return -1;
    }
    return REAL(rename)(from, to);
}
