/*
 * enospc.c
 *	  A full disk, for a torture run: preloaded into the server, it lets no
 *	  file grow as long as the file named by TORTURE_DISK_FULL exists.
 *
 * As on a disk that is really full, what has been allocated can be written
 * again, and new files can be made, but stay empty.  It is the disk of the
 * data directory, not that of shared memory; and standard output and error are
 * spared, so that the log can tell.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

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

#define NEXT(name) \
	static __typeof__(name) *next; \
	if (next == NULL) \
		next = (__typeof__(name) *) dlsym(RTLD_NEXT, #name)

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
