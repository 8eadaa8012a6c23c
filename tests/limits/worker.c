/* Uses up what limits are about, by measure, with nothing of an interpreter beside it. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1 << 20)

static void touch(int mib)
{
	char *memory = mmap(NULL, (size_t)mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		_exit(2);
	for (size_t at = 0; at < (size_t)mib * MIB; at += 4096)
		memory[at] = 1;
}

static void say(const char *word)
{
	if (write(1, word, strlen(word)) < 0)
		_exit(3);
}

static long usec(int who)
{
	struct rusage used;
	getrusage(who, &used);
	return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000L + used.ru_utime.tv_usec + used.ru_stime.tv_usec;
}

static void burn(int msec)
{
	while (usec(RUSAGE_SELF) < msec * 1000L)
		for (volatile int i = 0; i < 10000000; i++)
			;
}

/* `count` processes that hold `mib` each, all at the same time. */
static void tree(int count, int mib)
{
	int held[2], over[2];
	char byte;
	if (pipe(held) || pipe(over))
		_exit(2);
	for (int i = 0; i < count; i++)
		if (fork() == 0) {
			close(over[1]);
			touch(mib);
			if (write(held[1], "x", 1) != 1 || read(over[0], &byte, 1))
				_exit(3);
			_exit(0);
		}
	for (int i = 0; i < count; i++)
		if (read(held[0], &byte, 1) != 1)
			_exit(3);
	close(over[1]);
	while (wait(NULL) > 0)
		;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int first = argc > 2 ? atoi(argv[2]) : 0, second = argc > 3 ? atoi(argv[3]) : 0;

	if (!strcmp(what, "hog")) { /* takes memory for ever */
		for (;;)
			touch(1);
	} else if (!strcmp(what, "hold")) { /* MIB */
		touch(first);
		say("held\n");
		pause();
	} else if (!strcmp(what, "tree")) { /* PROCESSES MIB */
		tree(first, second);
	} else if (!strcmp(what, "forks")) { /* until none is to be had */
		int made = 0;
		for (;;) {
			pid_t pid = fork();
			if (pid < 0)
				break;
			if (pid == 0)
				for (;;)
					pause();
			made++;
		}
		printf("%d\n", made);
	} else if (!strcmp(what, "bomb")) {
		for (;;)
			fork();
	} else if (!strcmp(what, "spin")) {
		for (;;)
			;
	} else if (!strcmp(what, "burn")) { /* PROCESSES MSEC: says what getrusage(2) knows of it */
		for (int i = 0; i < first; i++)
			if (fork() == 0) {
				burn(second);
				_exit(0);
			}
		while (wait(NULL) > 0)
			;
		printf("%ld\n", usec(RUSAGE_SELF) + usec(RUSAGE_CHILDREN));
	} else {
		return 1;
	}
	return 0;
}
