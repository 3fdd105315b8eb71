/*
 * machine.c
 *	  What can be wrong with the machine, for a torture run; to be preloaded into
 *	  the server.
 *
 * The disk is full as long as the file named by TORTURE_DISK_FULL exists: no
 * file grows.  As on a disk that is really full, what has been allocated can be
 * written again, and new files can be made, but stay empty.  It is the disk of
 * the data directory, not that of shared memory; and standard output and error
 * are spared, so that the log can tell.
 *
 * The clock is off by as many microseconds as the file named by TORTURE_CLOCK
 * says, a 64-bit integer, which may change at any time.  PostgreSQL looks at the
 * clock in signal handlers, so nothing but a look at mapped memory will do:
 * libfaketime, which reads its file with stdio, breaks malloc there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NEXT(name) \
	static __typeof__(name) *next; \
	if (next == NULL) \
		next = (__typeof__(name) *) dlsym(RTLD_NEXT, #name)

/* ----------------------------------------------------------------
 *						The disk
 * ----------------------------------------------------------------
 */

static int
disk_is_full(int fd, off_t end)
{
	const char *flag = getenv("TORTURE_DISK_FULL");
	struct stat st,
				disk;
	int			save_errno = errno;
	int			full;

	full = fd > STDERR_FILENO && flag != NULL &&
		fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && end > st.st_size &&
		access(flag, F_OK) == 0 &&
		stat(".", &disk) == 0 && disk.st_dev == st.st_dev;
	errno = full ? ENOSPC : save_errno;
	return full;
}

static size_t
iov_length(const struct iovec *iov, int count)
{
	size_t		length = 0;

	for (int i = 0; i < count; i++)
		length += iov[i].iov_len;
	return length;
}

ssize_t
write(int fd, const void *buf, size_t count)
{
	NEXT(write);
	if (fd > STDERR_FILENO && disk_is_full(fd, lseek(fd, 0, SEEK_CUR) + (off_t) count))
		return -1;
	return next(fd, buf, count);
}

ssize_t
pwrite(int fd, const void *buf, size_t count, off_t offset)
{
	NEXT(pwrite);
	if (disk_is_full(fd, offset + (off_t) count))
		return -1;
	return next(fd, buf, count, offset);
}

ssize_t
pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
	NEXT(pwritev);
	if (disk_is_full(fd, offset + (off_t) iov_length(iov, count)))
		return -1;
	return next(fd, iov, count, offset);
}

/* PostgreSQL is built with 64-bit offsets, and may use either name. */
ssize_t
pwrite64(int fd, const void *buf, size_t count, off_t offset)
{
	return pwrite(fd, buf, count, offset);
}

ssize_t
pwritev64(int fd, const struct iovec *iov, int count, off_t offset)
{
	return pwritev(fd, iov, count, offset);
}

int
posix_fallocate(int fd, off_t offset, off_t length)
{
	NEXT(posix_fallocate);
	if (disk_is_full(fd, offset + length))
		return ENOSPC;
	return next(fd, offset, length);
}

int
posix_fallocate64(int fd, off_t offset, off_t length)
{
	return posix_fallocate(fd, offset, length);
}

/* ----------------------------------------------------------------
 *						The clock
 * ----------------------------------------------------------------
 */

static const volatile int64_t *clock_offset;

__attribute__((constructor)) static void
clock_init(void)
{
	const char *name = getenv("TORTURE_CLOCK");
	int			fd = name != NULL ? open(name, O_RDONLY) : -1;
	void	   *page;

	if (fd < 0)
		return;
	page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
	if (page != MAP_FAILED)
		clock_offset = page;
	close(fd);
}

int
clock_gettime(clockid_t id, struct timespec *ts)
{
	NEXT(clock_gettime);
	int			result = next(id, ts);

	if (result == 0 && id == CLOCK_REALTIME && clock_offset != NULL)
	{
		int64_t		usec = ts->tv_sec * INT64_C(1000000) + ts->tv_nsec / 1000 +
			*clock_offset;

		ts->tv_sec = usec / 1000000;
		ts->tv_nsec = usec % 1000000 * 1000 + ts->tv_nsec % 1000;
	}
	return result;
}

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	struct timespec ts;

	(void) tz;
	if (clock_gettime(CLOCK_REALTIME, &ts) != 0)
		return -1;
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *result)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	if (result != NULL)
		*result = ts.tv_sec;
	return ts.tv_sec;
}
