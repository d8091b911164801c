/* Frames out, replies in. A frame that a socket does not take at once, and whatever is not the reply to it, are
 * Python's. */
#define _GNU_SOURCE
#include "dispatcher.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

void send_call(call *c, int fd) {
    struct iovec parts[3] = {
        {c->header, sizeof(frame_header)},
        {(void *)c->rows, c->rows_bytes},
        {c->tail, c->tail_bytes},
    };
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    ssize_t sent;
    do sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    c->num_sent = sent < 0 ? 0 : (size_t)sent;
}

/* But for the worker's own seconds a reply's header is known before it comes. */
static int is_expected(const dispatcher *d, const flight *f, const call *c) {
    const frame_header *const got = (const frame_header *)c->reply.at;
    const size_t row_bytes = (size_t)f->rows.width * 4, out_bytes = c->reply_bytes - sizeof(frame_header);
    const frame_header expected = {
        .magic = {'E', 'M'},
        .version = FRAME_VERSION,
        .kind = FRAME_REPLY,
        .body_bytes = out_bytes,
        .call_id = c->id,
        .epoch = d->epoch,
        .layer = (uint32_t)d->table->layers[f->rows.layer].layer,
        .num_rows = (uint32_t)(out_bytes / row_bytes),
        .num_pairs = c->tag,
        .width = (uint32_t)f->rows.width,
    };
    return memcmp(got, &expected, offsetof(frame_header, seconds)) == 0;
}

/* What has come of a reply. 1: all of it; 0: there is more to come; less than 0: it is Python's. */
static int read_more(const dispatcher *d, const flight *f, call *c) {
    const int fd = d->table->links[c->link].fd;
    while (c->num_got < c->reply_bytes) {
        const int had_header = c->num_got >= sizeof(frame_header);
        const ssize_t got = recv(fd, c->reply.at + c->num_got, c->reply_bytes - c->num_got, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
        if (got <= 0) return -1;
        c->num_got += (size_t)got;
        if (!had_header && c->num_got >= sizeof(frame_header) && !is_expected(d, f, c)) return -1;
    }
    c->arrived = monotonic();
    return 1;
}

/* Sleeps until something has come of a call from `first` on, and reads it: when a quick worker has answered is known
 * although a slow one is waited for. Asleep in a read, one would be woken by each frame that the peer takes from a Unix
 * socket as well. */
static int wait_and_read(const dispatcher *d, const flight *f, long first, double seconds) {
    struct pollfd open[MAX_POLLED];
    call *of[MAX_POLLED];
    nfds_t num_open = 0;
    for (long i = first; i < f->num_calls && num_open < MAX_POLLED; i++) {
        call *const c = &f->calls[i];
        if (c->num_got == c->reply_bytes) continue;
        open[num_open] = (struct pollfd){.fd = d->table->links[c->link].fd, .events = POLLIN};
        of[num_open++] = c;
    }
    const struct timespec left = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    if (ppoll(open, num_open, &left, NULL) < 0) return errno == EINTR;
    for (nfds_t i = 0; i < num_open; i++)
        if (open[i].revents != 0 && read_more(d, f, of[i]) < 0) return 0;
    return 1;
}

int receive_reply(const dispatcher *d, const flight *f, long number, double until) {
    call *const c = &f->calls[number];
    if (c->num_got < c->reply_bytes && read_more(d, f, c) < 0) return 0;
    while (c->num_got < c->reply_bytes) {
        const double left = until - monotonic();
        if (left <= 0 || !wait_and_read(d, f, number, left)) return 0;
    }
    return 1;
}
