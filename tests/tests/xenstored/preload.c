/*
 * Answers what Debian's xenstored asks of Xen, so that it runs on a machine without Xen.
 *
 * The folder in $FAKE_XEN is the machine:
 *   page-N     the xenstore page of domain N, mapped here and read and written by the test
 *   domain-N   there is a domain N; it says "running" or "shutdown"
 *   port       domain 0's port
 * Standard input is a socket to the test: ports as four bytes, either way, are events.
 *
 * The functions are those of Xen's libraries (tools/include/xenevtchn.h, xengnttab.h, xenctrl.h).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = STDIN_FILENO, PAGE = 4096, VIRQ_PORT = 0x10000 };

static int machine;

static int in_machine(const char *kind, unsigned int domid, int flags)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/%s-%u", getenv("FAKE_XEN"), kind, domid);
	return syscall(SYS_openat, AT_FDCWD, path, flags, 0);
}

/* The files of Xen's kernel interface are taken from the machine. */
int open(const char *path, int flags, ...)
{
	char port[4096];
	va_list more;
	int mode;

	va_start(more, flags);
	mode = va_arg(more, int);
	va_end(more);
	if (!strcmp(path, "/proc/xen/xsd_kva"))
		return in_machine("page", 0, flags);
	if (!strcmp(path, "/proc/xen/xsd_port")) {
		snprintf(port, sizeof(port), "%s/port", getenv("FAKE_XEN"));
		path = port;
	}
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

/* The rate limit counts in this clock: a thousand times as fast, it does not slow the test. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = syscall(SYS_clock_gettime, clock, now);
	if (!result && clock == CLOCK_MONOTONIC)
		now->tv_sec = now->tv_sec * 1000 + now->tv_nsec / 1000000;
	return result;
}

void *xenevtchn_open(void *logger, unsigned int flags) { return &machine; }
void *xenevtchn_fdopen(void *logger, int fd, unsigned int flags) { return &machine; }
int xenevtchn_fd(void *handle) { return EVENTS; }
int xenevtchn_unbind(void *handle, uint32_t port) { return 0; }
int xenevtchn_bind_virq(void *handle, unsigned int virq) { return VIRQ_PORT; }
int xenevtchn_bind_interdomain(void *handle, uint32_t domid, uint32_t port) { return domid + 1; }

int xenevtchn_pending(void *handle)
{
	uint32_t port;
	if (recv(EVENTS, &port, sizeof(port), MSG_WAITALL) != sizeof(port))
		_exit(0); /* The test is over. */
	return port;
}

/* What became of domains has been looked at once its port is unmasked: the test waits for that. */
int xenevtchn_unmask(void *handle, uint32_t port)
{
	if (port == VIRQ_PORT)
		send(EVENTS, &port, sizeof(port), MSG_NOSIGNAL);
	return 0;
}

int xenevtchn_notify(void *handle, uint32_t port)
{
	send(EVENTS, &port, sizeof(port), MSG_DONTWAIT | MSG_NOSIGNAL);
	return 0;
}

void *xengnttab_open(void *logger, unsigned int flags) { return &machine; }
int xengnttab_close(void *handle) { return 0; }
int xengnttab_set_max_grants(void *handle, uint32_t count) { return 0; }
int xengnttab_unmap(void *handle, void *page, uint32_t count) { return munmap(page, count * PAGE); }

void *xengnttab_map_grant_ref(void *handle, uint32_t domid, uint32_t ref, int protection)
{
	int fd = in_machine("page", domid, O_RDWR);
	void *page;

	if (fd < 0) {
		errno = EINVAL;
		return NULL;
	}
	page = mmap(NULL, PAGE, protection, MAP_SHARED, fd, 0);
	close(fd);
	return page == MAP_FAILED ? NULL : page;
}

void *xc_interface_open(void *logger, void *dombuild_logger, unsigned int flags) { return &machine; }
int xc_interface_close(void *handle) { return 0; }

/* What xc_dominfo_t begins with; xenstored looks at no more. */
struct domain {
	uint32_t domid;
	uint32_t ssidref;
	unsigned int dying : 1, crashed : 1, shutdown : 1;
};

int xc_domain_getinfo(void *handle, uint32_t domid, unsigned int count, struct domain *info)
{
	char state = 0;
	int fd = in_machine("domain", domid, O_RDONLY);

	if (fd < 0)
		return 0;
	if (read(fd, &state, 1) < 0)
		state = 0;
	close(fd);
	info->domid = domid;
	info->dying = info->crashed = 0;
	info->shutdown = state == 's';
	return 1;
}
