/*
 * A toolstack in miniature: uses every call of libxenstore.so.4 that talks to xenstored, and ends
 * with status 1 and a line that says which check failed. The prototypes are those of the library's
 * ABI; there is no need for its headers.
 */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct xs_handle;
typedef uint32_t xs_transaction_t;
struct xs_permissions {
    unsigned int id;
    enum { NONE = 0, READ = 1, WRITE = 2 } perms;
};

struct xs_handle *xs_open(unsigned long flags);
void xs_close(struct xs_handle *);
char **xs_directory(struct xs_handle *, xs_transaction_t, const char *path, unsigned int *num);
void *xs_read(struct xs_handle *, xs_transaction_t, const char *path, unsigned int *len);
bool xs_write(struct xs_handle *, xs_transaction_t, const char *path, const void *, unsigned int len);
bool xs_mkdir(struct xs_handle *, xs_transaction_t, const char *path);
bool xs_rm(struct xs_handle *, xs_transaction_t, const char *path);
struct xs_permissions *xs_get_permissions(struct xs_handle *, xs_transaction_t, const char *path,
                                          unsigned int *num);
bool xs_set_permissions(struct xs_handle *, xs_transaction_t, const char *path,
                        struct xs_permissions *, unsigned int num);
bool xs_watch(struct xs_handle *, const char *path, const char *token);
bool xs_unwatch(struct xs_handle *, const char *path, const char *token);
int xs_fileno(struct xs_handle *);
char **xs_check_watch(struct xs_handle *);
char **xs_read_watch(struct xs_handle *, unsigned int *num);
xs_transaction_t xs_transaction_start(struct xs_handle *);
bool xs_transaction_end(struct xs_handle *, xs_transaction_t, bool abort);
bool xs_introduce_domain(struct xs_handle *, unsigned int domid, unsigned long mfn,
                         unsigned int eventchn);
bool xs_set_target(struct xs_handle *, unsigned int domid, unsigned int target);
bool xs_resume_domain(struct xs_handle *, unsigned int domid);
bool xs_release_domain(struct xs_handle *, unsigned int domid);
char *xs_get_domain_path(struct xs_handle *, unsigned int domid);
bool xs_is_domain_introduced(struct xs_handle *, unsigned int domid);
char *xs_control_command(struct xs_handle *, const char *cmd, void *data, unsigned int len);

#define CHECK(what)                                                                               \
    do {                                                                                          \
        if (!(what)) {                                                                            \
            fprintf(stderr, "line %d: %s (errno: %s)\n", __LINE__, #what, strerror(errno));       \
            exit(1);                                                                              \
        }                                                                                         \
    } while (0)

/* The call fails, and with this error. */
#define REFUSED(call, error)                                                                      \
    do {                                                                                          \
        errno = 0;                                                                                \
        CHECK(!(call));                                                                           \
        CHECK(errno == (error));                                                                  \
    } while (0)

static bool is(struct xs_handle *xs, xs_transaction_t tx, const char *path, const char *value)
{
    unsigned int len;
    char *read = xs_read(xs, tx, path, &len);
    bool same = read && len == strlen(value) && !memcmp(read, value, len);

    free(read);
    return same;
}

static bool next_event(struct xs_handle *xs, const char *path, const char *token)
{
    unsigned int num;
    char **event = xs_read_watch(xs, &num);
    bool same = event && num == 2 && !strcmp(event[0], path) && !strcmp(event[1], token);

    if (event && !same)
        fprintf(stderr, "event: %s %s\n", event[0], event[1]);
    free(event);
    return same;
}

static void nodes(struct xs_handle *xs)
{
    unsigned int num, len;
    char **names;
    char path[64];

    CHECK(xs_write(xs, 0, "/lib/a", "one", 3));
    CHECK(is(xs, 0, "/lib/a", "one"));
    CHECK(xs_write(xs, 0, "/lib/zeros", "a\0b", 3));
    char *zeros = xs_read(xs, 0, "/lib/zeros", &len);
    CHECK(zeros && len == 3 && !memcmp(zeros, "a\0b", 3));
    free(zeros);
    CHECK(xs_mkdir(xs, 0, "/lib/dir"));
    CHECK(xs_mkdir(xs, 0, "/lib/dir"));
    CHECK(is(xs, 0, "/lib/dir", ""));
    names = xs_directory(xs, 0, "/lib", &num);
    CHECK(names && num == 3 && !strcmp(names[0], "a") && !strcmp(names[2], "dir"));
    free(names);
    CHECK(xs_rm(xs, 0, "/lib/dir"));
    REFUSED(xs_read(xs, 0, "/lib/dir", &len), ENOENT);
    REFUSED(xs_directory(xs, 0, "/lib/dir", &num), ENOENT);
    REFUSED(xs_write(xs, 0, "/lib//a", "", 0), EINVAL);

    /* More than a message holds: the library asks for the parts. */
    for (int n = 0; n < 1000; n++) {
        snprintf(path, sizeof(path), "/lib/many/number-%d", n);
        CHECK(xs_mkdir(xs, 0, path));
    }
    names = xs_directory(xs, 0, "/lib/many", &num);
    CHECK(names && num == 1000);
    free(names);
}

static void permissions(struct xs_handle *xs)
{
    struct xs_permissions set[] = { { 3, NONE }, { 4, READ }, { 5, WRITE }, { 6, READ | WRITE } };
    struct xs_permissions *got;
    unsigned int num;

    CHECK(xs_set_permissions(xs, 0, "/lib/a", set, 4));
    got = xs_get_permissions(xs, 0, "/lib/a", &num);
    CHECK(got && num == 4);
    for (unsigned int n = 0; n < num; n++)
        CHECK(got[n].id == set[n].id && got[n].perms == set[n].perms);
    free(got);
    REFUSED(xs_set_permissions(xs, 0, "/none", set, 1), ENOENT);
    REFUSED(xs_get_permissions(xs, 0, "/none", &num), ENOENT);
}

static void watches(struct xs_handle *xs)
{
    struct pollfd readable;

    CHECK(xs_watch(xs, "/lib/w", "token"));
    CHECK(next_event(xs, "/lib/w", "token"));
    REFUSED(xs_watch(xs, "/lib/w", "token"), EEXIST);
    CHECK(xs_write(xs, 0, "/lib/w/x", "", 0));
    CHECK(next_event(xs, "/lib/w/x", "token"));
    REFUSED(xs_check_watch(xs), EAGAIN);

    /* As an event loop does it. */
    readable.fd = xs_fileno(xs);
    readable.events = POLLIN;
    CHECK(xs_rm(xs, 0, "/lib/w"));
    CHECK(poll(&readable, 1, 10000) == 1);
    char **event = xs_check_watch(xs);
    CHECK(event && !strcmp(event[0], "/lib/w") && !strcmp(event[1], "token"));
    free(event);

    CHECK(xs_unwatch(xs, "/lib/w", "token"));
    REFUSED(xs_unwatch(xs, "/lib/w", "token"), ENOENT);
    CHECK(xs_watch(xs, "@releaseDomain", "domains"));
    CHECK(next_event(xs, "@releaseDomain", "domains"));
    CHECK(xs_unwatch(xs, "@releaseDomain", "domains"));
}

/* Counts to `times` in transactions of its own connection. */
static int count(int times)
{
    struct xs_handle *xs = xs_open(0);
    char text[16];
    unsigned int len;

    CHECK(xs);
    while (times) {
        xs_transaction_t tx = xs_transaction_start(xs);
        CHECK(tx);
        char *read = xs_read(xs, tx, "/lib/count", &len);
        CHECK(read);
        snprintf(text, sizeof(text), "%d", atoi(read) + 1);
        free(read);
        CHECK(xs_write(xs, tx, "/lib/count", text, strlen(text)));
        if (xs_transaction_end(xs, tx, false))
            times--;
        else
            CHECK(errno == EAGAIN);
    }
    xs_close(xs);
    return 0;
}

static void transactions(struct xs_handle *xs)
{
    xs_transaction_t tx = xs_transaction_start(xs);
    int status;

    CHECK(tx);
    CHECK(xs_write(xs, tx, "/lib/tx", "inside", 6));
    CHECK(is(xs, tx, "/lib/tx", "inside"));
    REFUSED(xs_read(xs, 0, "/lib/tx", NULL), ENOENT);
    CHECK(xs_transaction_end(xs, tx, true));
    REFUSED(xs_read(xs, 0, "/lib/tx", NULL), ENOENT);
    REFUSED(xs_transaction_end(xs, tx, false), ENOENT);

    tx = xs_transaction_start(xs);
    CHECK(is(xs, tx, "/lib/a", "one"));
    CHECK(xs_write(xs, tx, "/lib/b", "two", 3));
    CHECK(xs_write(xs, 0, "/lib/a", "other", 5));
    REFUSED(xs_transaction_end(xs, tx, false), EAGAIN);
    REFUSED(xs_read(xs, 0, "/lib/b", NULL), ENOENT);

    CHECK(xs_write(xs, 0, "/lib/count", "0", 1));
    for (int child = 0; child < 2; child++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0)
            _exit(count(100));
    }
    for (int child = 0; child < 2; child++)
        CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(is(xs, 0, "/lib/count", "200"));
}

/* There are no domains here: each call reaches the daemon, which says so. */
static void domains(struct xs_handle *xs)
{
    char *path = xs_get_domain_path(xs, 7);

    CHECK(path && !strcmp(path, "/local/domain/7"));
    free(path);
    CHECK(!xs_is_domain_introduced(xs, 7));
    REFUSED(xs_introduce_domain(xs, 7, 1, 1), EINVAL);
    REFUSED(xs_release_domain(xs, 7), ENOENT);
    REFUSED(xs_resume_domain(xs, 7), ENOENT);
    REFUSED(xs_set_target(xs, 7, 8), ENOENT);
}

static void control(struct xs_handle *xs)
{
    char *answer = xs_control_command(xs, "print", "from C", 7);

    CHECK(answer && !strcmp(answer, "OK"));
    free(answer);
    answer = xs_control_command(xs, "help", NULL, 0);
    CHECK(answer && strstr(answer, "print"));
    free(answer);
    REFUSED(xs_control_command(xs, "nonsense", NULL, 0), EINVAL);
}

int main(void)
{
    struct xs_handle *xs = xs_open(0);

    CHECK(xs);
    nodes(xs);
    permissions(xs);
    watches(xs);
    transactions(xs);
    domains(xs);
    control(xs);
    xs_close(xs);
    puts("all checked");
    return 0;
}
