// Tells on standard output what it was started with, one "key value" a line.
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

int main() {
  printf("descriptors");
  DIR* directory = opendir("/proc/self/fd");
  while (const dirent* entry = readdir(directory)) {
    const int descriptor = atoi(entry->d_name);
    if (entry->d_name[0] == '.' || descriptor == dirfd(directory)) continue;
    struct stat status;
    // The inode tells which file it is.
    if (fstat(descriptor, &status) == 0) {
      printf(" %d=%lu", descriptor, static_cast<unsigned long>(status.st_ino));
    }
  }
  closedir(directory);

  printf("\nignored");
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action;
    if (sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) {
      printf(" %d", number);
    }
  }
  printf("\nblocked");
  sigset_t blocked;
  sigprocmask(SIG_SETMASK, nullptr, &blocked);
  for (int number = 1; number < NSIG; ++number) {
    if (sigismember(&blocked, number) == 1) printf(" %d", number);
  }

  rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  char directory_name[4096];
  printf("\npid %d\ngroup %d\nsession %d\nlimit %lu\ndirectory %s\n", getpid(), getpgid(0),
         getsid(0), static_cast<unsigned long>(limit.rlim_cur),
         getcwd(directory_name, sizeof(directory_name)));
  return 0;
}
