/* clone3: the system call with a stack of its own for the child, for each architecture that we know. */
#include <linux/sched.h>
#include <sys/syscall.h>

/* The raw clone3, whose child runs entry(arg) on the stack in args and never comes back here. No libc
 * wraps it: a C caller cannot return from a system call onto another stack. */
static long clone3_onto(struct clone_args *args, int (*entry)(void *), void *arg)
{
#if defined(__x86_64__)
	long ret;
	register void *r8 __asm__("r8") = (void *)entry;
	register void *r9 __asm__("r9") = arg;

	__asm__ volatile("syscall\n\t"
			 "testq %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xorl %%ebp, %%ebp\n\t" /* the outermost frame */
			 "movq %%r9, %%rdi\n\t"
			 "callq *%%r8\n\t"
			 "hlt\n"
			 "1:"
			 : "=a"(ret)
			 : "0"((long)SYS_clone3), "D"(args), "S"(sizeof *args), "r"(r8), "r"(r9)
			 : "rcx", "r11", "cc", "memory");
	return ret;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = SYS_clone3;
	register long x0 __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = sizeof *args;
	register void *x10 __asm__("x10") = (void *)entry;
	register void *x11 __asm__("x11") = arg;

	__asm__ volatile("svc #0\n\t"
			 "cbnz x0, 1f\n\t"
			 "mov x29, xzr\n\t" /* the outermost frame */
			 "mov x30, xzr\n\t"
			 "mov x0, x11\n\t"
			 "blr x10\n\t"
			 "brk #0\n"
			 "1:"
			 : "+r"(x0)
			 : "r"(x1), "r"(x8), "r"(x10), "r"(x11)
			 : "cc", "memory");
	return x0;
#else
#error "pinfold has a clone3 trampoline for x86-64 and aarch64; add this architecture's"
#endif
}
