/* The steps that a child carries out between clone and exec, and the memory that it shares with us. */
#ifndef PINFOLD_STEPS_H
#define PINFOLD_STEPS_H

#include <stddef.h>
#include <stdint.h>

/* The numbers are part of the format that steps.py packs; names are those of SpawnError.step. */
enum op {
	STEP_CLONE,        /* implied, in the parent */
	STEP_CGROUP,       /* implied: move there, where it could not be born there */
	STEP_FDS,          /* data: int32 sources of 0, 1, 2 (-1: ours) */
	STEP_CLOSE,        /* everything from 3 on, but the int32s in data (ascending) */
	STEP_SIGNALS,      /* a: mask of those to reset to their default; b: keep the caller's signal mask */
	STEP_SESSION,      /* setsid */
	STEP_GROUP,        /* a: process group; 0: a new one */
	STEP_CWD,          /* data: path, with its NUL */
	STEP_UMASK,        /* a */
	STEP_RLIMIT,       /* data: uint64 resource, soft, hard */
	STEP_GROUPS,       /* data: uint32 supplementary groups */
	STEP_GID,          /* a */
	STEP_UID,          /* a */
	STEP_NO_NEW_PRIVS,
	STEP_EXEC,         /* implied, the last one */
	STEP_COUNT,
};

struct step { /* packed one after the other; data is padded to a multiple of 8 */
	uint32_t op;
	uint32_t size; /* of data, in bytes, without the padding */
	int64_t a, b;
	char data[];
};

struct child { /* lives until the child has exec'ed or ended */
	char **argv;
	char **paths; /* candidates for exec, in order */
	char **envp;
	const char *steps;
	size_t steps_size;
	uint64_t caller_mask; /* of signals, before we blocked them all */
	int cgroup;
	int move;    /* into `cgroup`: it was not born there */
	int detach;  /* the first descriptor that it need not copy from our table; 0: it has a copy already */
	int vfork;   /* the thread that calls clone sleeps until the exec; another one waits for the pid */
	int pid;     /* 0: not started; negative: the errno of clone */
	/* Written by the child: */
	int detached; /* it has a table of descriptors of its own */
	int failed;   /* enum op, if error */
	int error;    /* errno; 0: it got as far as exec */
	int path_index;
	/* Written by the kernel (CLONE_CHILD_CLEARTID): 0 once it has exec'ed or ended. */
	int sharing;
};

int run_steps(void *child);

#endif
