/* Hides what an x86-64 processor has beyond AVX2, so that libraries run the kernels of older ones.
 *
 *   gcc -O2 -shared -fPIC -o limit_cpu.so tests/limit_cpu.c -ldl
 *   LD_PRELOAD=$PWD/limit_cpu.so python ...
 *
 * Libraries choose kernels by CPUID, which no option of ONNX Runtime or OpenVINO overrides. Linux can
 * make that instruction fault (arch_prctl, ARCH_SET_CPUID; threads and forks inherit it), and the
 * handler answers in its place: with all bits of the processor but AVX-512, AVX-VNNI, AMX and what
 * came with them. Where the machine cannot do that, the program ends with 77, as tests that are
 * skipped do.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define SKIPPED 77
#define BIT(n) (1u << (n))

static struct sigaction next; /* who else wants faults: Python's faulthandler, for one */

static long set_cpuid(long on) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, on); }

static int real_sigaction(int number, const struct sigaction *given, struct sigaction *old) {
  static int (*real)(int, const struct sigaction *, struct sigaction *);
  if (!real) real = dlsym(RTLD_NEXT, "sigaction");
  return real(number, given, old);
}

static void hide(uint32_t leaf, uint32_t sub, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d) {
  if (leaf == 7 && sub == 0) {
    *a = 0; /* no further pages: AVX-VNNI, AVX-VNNI-INT8, AMX-FP16 */
    /* AVX512F, DQ, IFMA, PF, ER, CD, BW, VL */
    *b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
    /* AVX512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
    *c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
    /* AVX512 4VNNIW, 4FMAPS, VP2INTERSECT, FP16; AMX BF16, TILE, INT8 */
    *d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
  } else if (leaf == 0xd && sub == 0) {
    *a &= 7; /* states to save: x87, SSE and AVX alone */
  } else if (leaf == 7 || leaf == 0x19 || leaf == 0x1d || leaf == 0x1e || leaf == 0x24) {
    *a = *b = *c = *d = 0; /* further pages; key locker; tiles; AVX10 */
  }
}

static void on_fault(int number, siginfo_t *info, void *context) {
  (void)number;
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *code = (const uint8_t *)r[REG_RIP];
  /* a jump to nowhere faults at its address, which cannot be read */
  if (info->si_addr == code || code[0] != 0x0f || code[1] != 0xa2) {
    real_sigaction(SIGSEGV, &next, NULL); /* the instruction faults again, and they hear of it */
    return;
  }
  uint32_t leaf = (uint32_t)r[REG_RAX], sub = (uint32_t)r[REG_RCX], a, b, c, d;
  set_cpuid(1);
  __cpuid_count(leaf, sub, a, b, c, d);
  set_cpuid(0);
  hide(leaf, sub, &a, &b, &c, &d);
  r[REG_RAX] = a;
  r[REG_RBX] = b;
  r[REG_RCX] = c;
  r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

/* Nobody takes the handler away: who asks for faults gets those that are not ours. */
int sigaction(int number, const struct sigaction *given, struct sigaction *old) {
  if (number != SIGSEGV) return real_sigaction(number, given, old);
  if (old) *old = next;
  if (given) next = *given;
  return 0;
}

__attribute__((constructor)) static void limit(void) {
  /* On the stack of the thread: a stack for signals that a library made may be gone by now. */
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  real_sigaction(SIGSEGV, &action, &next);
  if (set_cpuid(0) != 0) {
    fprintf(stderr, "limit_cpu: this machine cannot hide what its CPU has\n");
    exit(SKIPPED);
  }
}
