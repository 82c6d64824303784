/* What the kernel alone asks for a fan-out: one process copies a stream's bytes to N loopback TCP sockets with send(2)
 * and does nothing else, while a child on another core throws them away. No server that copies bytes to sockets one by
 * one can use less CPU than this; what it uses more is its own doing.
 *
 * usage: floor SOCKETS SECONDS TICK_MS INTER_BYTES KEY_BYTES AUDIO_BYTES FPS GOP_FRAMES FIRST_FRAME
 * FIRST_FRAME is the place in the GOP where the stream starts.
 * TICK_MS 0 sends each media message when it is due; otherwise all that came due in a tick goes out in one send.
 * Prints one JSON line.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SERVER_CORE = 0, LOAD_CORE = 1, EVENTS = 256, DISCARD_BYTES = 1 << 20 };
static const double AUDIO_PERIOD_S = 1024.0 / 48000;

static void die(const char *what)
{
    perror(what);
    exit(2);
}

static void pin(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set); /* a machine without that core measures unpinned */
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu_s(const struct rusage *r)
{
    return r->ru_utime.tv_sec + r->ru_stime.tv_sec + (r->ru_utime.tv_usec + r->ru_stime.tv_usec) / 1e6;
}

static double own_cpu_s(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return cpu_s(&r);
}

static void sleep_until(double when_s)
{
    struct timespec t = {(time_t)when_s, (long)((when_s - (time_t)when_s) * 1e9)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static void drain(const struct sockaddr_in *address, int sockets)
{
    int epoll = epoll_create1(0);
    char *buffer = malloc(DISCARD_BYTES);
    struct epoll_event event = {.events = EPOLLIN}, ready[EVENTS];
    pin(LOAD_CORE);
    for (int i = 0; i < sockets; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof *address))
            die("connect");
        event.data.fd = fd;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
    for (;;) {
        int count = epoll_wait(epoll, ready, EVENTS, -1);
        for (int i = 0; i < count; i++)
            if (recv(ready[i].data.fd, buffer, DISCARD_BYTES, MSG_TRUNC | MSG_DONTWAIT) == 0)
                exit(0);
    }
}

int main(int argc, char **argv)
{
    if (argc != 10) {
        fprintf(stderr, "usage: floor SOCKETS SECONDS TICK_MS INTER_BYTES KEY_BYTES AUDIO_BYTES FPS GOP_FRAMES"
                        " FIRST_FRAME\n");
        return 2;
    }
    int sockets = atoi(argv[1]);
    double seconds = atof(argv[2]), tick_s = atof(argv[3]) / 1000;
    size_t inter_bytes = atol(argv[4]), key_bytes = atol(argv[5]), audio_bytes = atol(argv[6]);
    double frame_period_s = 1 / atof(argv[7]);
    long gop_frames = atol(argv[8]), first_frame = atol(argv[9]);

    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    alarm((unsigned)seconds + 60); /* whatever goes wrong, it ends */
    signal(SIGPIPE, SIG_IGN);

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)
        || getsockname(listener, (struct sockaddr *)&address, &length))
        die("listen");
    pid_t child = fork();
    if (child == 0)
        drain(&address, sockets);
    pin(SERVER_CORE);
    int *peers = malloc(sockets * sizeof *peers);
    for (int i = 0; i < sockets; i++) {
        if ((peers[i] = accept(listener, NULL, NULL)) < 0)
            die("accept");
        setsockopt(peers[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }

    size_t room = key_bytes + inter_bytes + audio_bytes, largest = room * (2 + (size_t)(tick_s / frame_period_s));
    char *media = calloc(1, largest);
    double start_s = now_s() + 0.2, start_cpu_s, due_s = 0, sent_bytes = 0;
    long sends = 0, incomplete = 0, frames = 0, sounds = 0;
    sleep_until(start_s);
    start_cpu_s = own_cpu_s();
    while (due_s < seconds && now_s() < start_s + seconds) {
        size_t size = 0;
        for (;;) { /* collect what is due: one message without a tick, all of the tick with one */
            double video_s = frames * frame_period_s, audio_s = sounds * AUDIO_PERIOD_S;
            double next_s = video_s <= audio_s ? video_s : audio_s;
            if (tick_s > 0 ? next_s > due_s : size > 0)
                break;
            if (tick_s <= 0)
                due_s = next_s;
            if (video_s <= audio_s)
                size += (first_frame + frames++) % gop_frames ? inter_bytes : key_bytes;
            else {
                size += audio_bytes;
                sounds++;
            }
        }
        sleep_until(start_s + due_s);
        for (int i = 0; size && i < sockets; i++) {
            ssize_t sent = send(peers[i], media, size, MSG_DONTWAIT);
            sends++;
            incomplete += sent != (ssize_t)size;
            sent_bytes += sent > 0 ? sent : 0;
        }
        due_s += tick_s;
    }
    double window_s = now_s() - start_s, used_s = own_cpu_s() - start_cpu_s;
    struct rusage load;
    kill(child, SIGTERM);
    wait4(child, NULL, 0, &load);
    printf("{\"cpu\": %.1f, \"us_per_send\": %.2f, \"mbps\": %.0f, \"incomplete\": %ld, \"load_cpu\": %.1f}\n",
           100 * used_s / window_s, 1e6 * used_s / sends, sent_bytes * 8 / window_s / 1e6, incomplete,
           100 * cpu_s(&load) / window_s);
    return 0;
}
