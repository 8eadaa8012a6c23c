/* From struct launch to a process on its way to its exec. */
#ifndef PINFOLD_LAUNCH_H
#define PINFOLD_LAUNCH_H

#include "steps.h"

#define STACK (16 * 1024) /* no handler runs on it, and no libc */

struct launch {
	struct child c;
	char *stack; /* two of them: an orphan has a process in between */
	int pidfd;
	int moved; /* it moves itself into the cgroup: clone3 was refused */
};

void launch(struct launch *l, int orphan);

/* Wait until a word is set, or is not, at most so long; 0, -ETIMEDOUT or -EINTR. */
int wait_word(int *word, int set, double seconds);

/* Set a word, and wake who waits for it. */
void set_word(int *word, int value);

static inline int get_word(int *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

#endif
