/*
 * Lets Debian's two xenstored daemons start on a machine without Xen, to serve their socket alone:
 * the hypervisor that they insist on is there, has one domain, and never has an event.
 *
 * oxenstored's socket has a fixed place; here it is moved to $XENSTORED_PATH.
 *
 * The functions are those of Xen's libraries (tools/include/xenevtchn.h, xengnttab.h, xenctrl.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static int handle;

static int is_fixed(const char *path)
{
	if (!strncmp(path, "/var", 4))
		path += 4;
	return !strncmp(path, "/run/xenstored", 14);
}

int bind(int fd, const struct sockaddr *address, socklen_t len)
{
	const struct sockaddr_un *local = (const void *)address;
	struct sockaddr_un moved = { .sun_family = AF_UNIX };

	if (address->sa_family == AF_UNIX && is_fixed(local->sun_path)) {
		strncpy(moved.sun_path, getenv("XENSTORED_PATH"), sizeof(moved.sun_path) - 1);
		address = (const void *)&moved;
		len = sizeof(moved);
	}
	return syscall(SYS_bind, fd, address, len);
}

/* What is at the fixed place is the host's, and stays. */
int unlink(const char *path)
{
	if (is_fixed(path)) {
		errno = ENOENT;
		return -1;
	}
	return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int mkdir(const char *path, mode_t mode)
{
	return is_fixed(path) ? 0 : syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

/* Domain 0, which C xenstored cannot do without: an empty page, and a port. */
int open(const char *path, int flags, ...)
{
	va_list more;
	int mode, fd;

	va_start(more, flags);
	mode = va_arg(more, int);
	va_end(more);
	if (strncmp(path, "/proc/xen/xsd_", 14))
		return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
	fd = memfd_create("domain 0", 0);
	if (!strcmp(path, "/proc/xen/xsd_port"))
		pwrite(fd, "1", 1, 0);
	else
		ftruncate(fd, 4096);
	return fd;
}

/* More open files than a container allows are not needed here. */
int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit) { return 0; }

void *xenevtchn_open(void *logger, unsigned int flags) { return &handle; }
void *xenevtchn_fdopen(void *logger, int fd, unsigned int flags) { return &handle; }
int xenevtchn_close(void *it) { return 0; }
int xenevtchn_bind_virq(void *it, unsigned int virq) { return 1; }
int xenevtchn_bind_interdomain(void *it, uint32_t domid, uint32_t port) { return 2; }
int xenevtchn_unbind(void *it, uint32_t port) { return 0; }
int xenevtchn_notify(void *it, uint32_t port) { return 0; }
int xenevtchn_unmask(void *it, uint32_t port) { return 0; }

int xenevtchn_fd(void *it)
{
	static int never_readable = -1;
	if (never_readable < 0)
		never_readable = eventfd(0, 0);
	return never_readable;
}

void *xengnttab_open(void *logger, unsigned int flags) { return &handle; }
int xengnttab_close(void *it) { return 0; }
int xengnttab_set_max_grants(void *it, uint32_t count) { return 0; }

void *xc_interface_open(void *logger, void *dombuild_logger, unsigned int flags) { return &handle; }
int xc_interface_close(void *it) { return 0; }
int xc_domain_getinfo(void *it, uint32_t domid, unsigned int count, void *info) { return 0; }
int xc_domain_getinfolist(void *it, uint32_t first, unsigned int count, void *info) { return 0; }
