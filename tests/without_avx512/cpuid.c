/* Answers CPUID as a CPU without AVX-512, AMX and VNNI would: preloaded by ./run.
 *
 * Linux lets a process have CPUID raise SIGSEGV (arch_prctl, ARCH_SET_CPUID; flag cpuid_fault in /proc/cpuinfo). The
 * handler asks the CPU, clears the bits and steps over the instruction. So every library, whatever it asks with, takes
 * the code for AVX2 that it would take there, and this CPU runs it. /proc/cpuinfo is read from $WITHOUT_AVX512_CPUINFO.
 * Sources: arch_prctl(2); Intel's Software Developer's Manual, CPUID.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static struct sigaction wanted; /* what the program asked for SIGSEGV: it gets every other fault */
static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);

static void cpuid_faults(long off) {
    long code = ARCH_SET_CPUID, answer;
    __asm__ volatile("syscall" : "=a"(answer) : "a"(SYS_arch_prctl), "D"(code), "S"(off) : "rcx", "r11", "memory");
}

static void hide(uint32_t leaf, uint32_t sub, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d) {
    if (leaf == 7 && sub == 0) {
        *b &= ~0xdc230000u; /* AVX512 F, DQ, IFMA, PF, ER, CD, BW, VL */
        *c &= ~0x00005f42u; /* VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ */
        *d &= ~0x03c0010cu; /* 4VNNIW, 4FMAPS, VP2INTERSECT, AMX BF16, AVX512 FP16, AMX TILE, AMX INT8 */
    } else if (leaf == 7 && sub == 1) {
        *a &= ~0x00a00030u; /* AVX VNNI, AVX512 BF16, AMX FP16, AVX IFMA */
        *d &= ~0x00080430u; /* AVX VNNI INT8, AVX NE CONVERT, AVX VNNI INT16, AVX10 */
    } else if (leaf == 0xd && sub == 0) {
        *a &= ~0x000600e0u; /* the state of ZMM and of tiles */
    }
}

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)registers[REG_RIP];
    if (info->si_code == SI_KERNEL && code && code[0] == 0x0f && code[1] == 0xa2) {
        uint32_t a, b, c, d, leaf = registers[REG_RAX], sub = registers[REG_RCX];
        cpuid_faults(1);
        __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(sub));
        cpuid_faults(0);
        hide(leaf, sub, &a, &b, &c, &d);
        registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
        registers[REG_RIP] += 2;
    } else if (wanted.sa_flags & SA_SIGINFO) {
        wanted.sa_sigaction(number, info, context);
    } else if (wanted.sa_handler != SIG_DFL && wanted.sa_handler != SIG_IGN) {
        wanted.sa_handler(number);
    } else { /* it happens again, and ends the process */
        struct sigaction standard = {.sa_handler = SIG_DFL};
        real_sigaction(SIGSEGV, &standard, NULL);
    }
}

int sigaction(int number, const struct sigaction *asked, struct sigaction *before) {
    if (!real_sigaction)
        real_sigaction = REAL(sigaction);
    if (number != SIGSEGV)
        return real_sigaction(number, asked, before);
    if (before)
        *before = wanted;
    if (asked)
        wanted = *asked;
    return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
    struct sigaction asked = {.sa_handler = handler, .sa_flags = SA_RESTART}, before;
    return sigaction(number, &asked, &before) ? SIG_ERR : before.sa_handler;
}

/* A thread that blocked SIGSEGV would be ended by its next CPUID. */
static const sigset_t *unblocked(int how, const sigset_t *set, sigset_t *copy) {
    if (!set || how == SIG_UNBLOCK)
        return set;
    *copy = *set;
    sigdelset(copy, SIGSEGV);
    return copy;
}

int pthread_sigmask(int how, const sigset_t *set, sigset_t *before) {
    sigset_t copy;
    return REAL(pthread_sigmask)(how, unblocked(how, set, &copy), before);
}

int sigprocmask(int how, const sigset_t *set, sigset_t *before) {
    sigset_t copy;
    return REAL(sigprocmask)(how, unblocked(how, set, &copy), before);
}

static const char *instead(const char *path) {
    const char *filtered = getenv("WITHOUT_AVX512_CPUINFO");
    return filtered && path && !strcmp(path, "/proc/cpuinfo") ? filtered : path;
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return syscall(SYS_openat, AT_FDCWD, instead(path), flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return syscall(SYS_openat, AT_FDCWD, instead(path), flags, mode);
}

__attribute__((constructor)) static void start(void) {
    struct sigaction ours = {.sa_flags = SA_SIGINFO | SA_NODEFER}; /* on the thread's own stack: others are too small */
    ours.sa_sigaction = on_fault;
    real_sigaction = REAL(sigaction);
    real_sigaction(SIGSEGV, &ours, &wanted);
    cpuid_faults(0);
}
