/* A folder, seen through FUSE, where what a file server would be asked takes longer: see slow_mount.py.
 *
 *     slow_mount FOLDER MICROSECONDS READ_MICROSECONDS AT [option of FUSE...]
 *
 * In C, so that what is measured is the waiting and not the server's own work: a request costs it some microseconds.
 */
#define FUSE_USE_VERSION 312
#define _GNU_SOURCE

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define COUNTS "user.operations" /* an attribute of every file: asking for it costs nothing and is not counted */
#define NAMES_SECONDS 30         /* what Linux's NFS client does by default: acdirmin, acregmin */
#define ATTRIBUTES_SECONDS 3

enum operation {
    GETATTR, READDIR, READLINK, OPEN, CREATE, MKDIR, SYMLINK, LINK, RENAME, UNLINK, RMDIR, CHMOD, CHOWN, TRUNCATE,
    UTIMENS, STATFS, READ, OPERATIONS
};
static const char *const names[OPERATIONS] = {
    "getattr", "readdir", "readlink", "open", "create", "mkdir", "symlink", "link", "rename", "unlink", "rmdir",
    "chmod", "chown", "truncate", "utimens", "statfs", "read",
};
static atomic_long counts[OPERATIONS];
static int folder = -1; /* the real folder's descriptor: paths are relative to it */
static long latency_us, read_us;

static _Thread_local int known; /* the thread has just changed a file: libfuse asks for its attributes next, which
                                   come with a file server's answer */

static void pause_us(long us)
{
    struct timespec left = {us / 1000000, us % 1000000 * 1000};
    while (us && nanosleep(&left, &left) && errno == EINTR)
        ;
}

static void asked(enum operation operation)
{
    atomic_fetch_add(&counts[operation], 1);
    pause_us(latency_us);
    known = 0;
}

static const char *real(const char *path)
{
    return path[1] ? path + 1 : ".";
}

static int told(int result)
{
    return result < 0 ? -errno : result;
}

static int changed(int result)
{
    known = result >= 0;
    return told(result);
}

/* --- what a file server is asked ------------------------------------------------------------------------- */

static int slow_getattr(const char *path, struct stat *found, struct fuse_file_info *file)
{
    if (!known)
        asked(GETATTR);
    known = 0;
    return told(file ? fstat(file->fh, found) : fstatat(folder, real(path), found, AT_SYMLINK_NOFOLLOW));
}

static int slow_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset, struct fuse_file_info *file,
                        enum fuse_readdir_flags flags)
{
    (void)offset, (void)file, (void)flags;
    asked(READDIR);
    int descriptor = openat(folder, real(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = descriptor < 0 ? NULL : fdopendir(descriptor);
    if (!listing)
        return -errno;
    for (struct dirent *entry; (entry = readdir(listing));) {
        struct stat kind = {.st_ino = entry->d_ino, .st_mode = DTTOIF(entry->d_type)};
        if (fill(buffer, entry->d_name, &kind, 0, 0))
            break;
    }
    closedir(listing);
    return 0;
}

static int slow_readlink(const char *path, char *target, size_t size)
{
    asked(READLINK);
    ssize_t length = readlinkat(folder, real(path), target, size - 1);
    if (length < 0)
        return -errno;
    target[length] = 0;
    return 0;
}

static int slow_open(const char *path, struct fuse_file_info *file)
{
    asked(OPEN);
    int descriptor = openat(folder, real(path), file->flags | O_CLOEXEC);
    file->fh = descriptor;
    return descriptor < 0 ? -errno : 0;
}

static int slow_create(const char *path, mode_t mode, struct fuse_file_info *file)
{
    asked(CREATE);
    int descriptor = openat(folder, real(path), file->flags | O_CREAT | O_CLOEXEC, mode);
    file->fh = descriptor;
    return changed(descriptor) < 0 ? -errno : 0;
}

static int slow_mkdir(const char *path, mode_t mode)
{
    asked(MKDIR);
    return changed(mkdirat(folder, real(path), mode));
}

static int slow_symlink(const char *target, const char *path)
{
    asked(SYMLINK);
    return changed(symlinkat(target, folder, real(path)));
}

static int slow_link(const char *source, const char *path)
{
    asked(LINK);
    return changed(linkat(folder, real(source), folder, real(path), 0));
}

static int slow_rename(const char *old, const char *new, unsigned int flags)
{
    asked(RENAME);
    return told(renameat2(folder, real(old), folder, real(new), flags));
}

static int slow_unlink(const char *path)
{
    asked(UNLINK);
    return told(unlinkat(folder, real(path), 0));
}

static int slow_rmdir(const char *path)
{
    asked(RMDIR);
    return told(unlinkat(folder, real(path), AT_REMOVEDIR));
}

static int slow_chmod(const char *path, mode_t mode, struct fuse_file_info *file)
{
    asked(CHMOD);
    return changed(file ? fchmod(file->fh, mode) : fchmodat(folder, real(path), mode, 0));
}

static int slow_chown(const char *path, uid_t user, gid_t group, struct fuse_file_info *file)
{
    asked(CHOWN);
    return changed(file ? fchown(file->fh, user, group)
                        : fchownat(folder, real(path), user, group, AT_SYMLINK_NOFOLLOW));
}

static int slow_truncate(const char *path, off_t size, struct fuse_file_info *file)
{
    asked(TRUNCATE);
    int descriptor = file ? (int)file->fh : openat(folder, real(path), O_WRONLY | O_CLOEXEC);
    int result = descriptor < 0 ? -errno : changed(ftruncate(descriptor, size));
    if (!file && descriptor >= 0)
        close(descriptor);
    return result;
}

static int slow_utimens(const char *path, const struct timespec times[2], struct fuse_file_info *file)
{
    asked(UTIMENS);
    return changed(file ? futimens(file->fh, times) : utimensat(folder, real(path), times, AT_SYMLINK_NOFOLLOW));
}

static int slow_statfs(const char *path, struct statvfs *found)
{
    (void)path;
    asked(STATFS);
    return told(fstatvfs(folder, found));
}

static int slow_read(const char *path, char *buffer, size_t size, off_t offset, struct fuse_file_info *file)
{
    (void)path;
    if (read_us) {
        atomic_fetch_add(&counts[READ], 1);
        pause_us(read_us);
    }
    return told(pread(file->fh, buffer, size, offset));
}

/* --- what it is not -------------------------------------------------------------------------------------- */

static int quick_write(const char *path, const char *buffer, size_t size, off_t offset, struct fuse_file_info *file)
{
    (void)path;
    return told(pwrite(file->fh, buffer, size, offset));
}

static int quick_fsync(const char *path, int data_only, struct fuse_file_info *file)
{
    (void)path;
    return told(data_only ? fdatasync(file->fh) : fsync(file->fh));
}

static int quick_release(const char *path, struct fuse_file_info *file)
{
    (void)path;
    return told(close(file->fh));
}

static int quick_getxattr(const char *path, const char *name, char *value, size_t size)
{
    (void)path;
    if (strcmp(name, COUNTS))
        return -ENODATA;
    char text[1024];
    int length = 0;
    for (int i = 0; i < OPERATIONS; i++) {
        long count = atomic_load(&counts[i]);
        if (count)
            length += snprintf(text + length, sizeof text - length, "%s\"%s\": %ld", length ? ", " : "{", names[i],
                               count);
    }
    length += snprintf(text + length, sizeof text - length, length ? "}" : "{}");
    if (size && size < (size_t)length)
        return -ERANGE;
    if (size)
        memcpy(value, text, length);
    return length;
}

static void *begin(struct fuse_conn_info *connection, struct fuse_config *config)
{
    connection->want |= connection->capable & FUSE_CAP_PARALLEL_DIROPS;
    config->use_ino = 1;
    config->hard_remove = 1;
    config->entry_timeout = NAMES_SECONDS;
    config->attr_timeout = ATTRIBUTES_SECONDS;
    config->negative_timeout = 0;
    return NULL;
}

static const struct fuse_operations operations = {
    .init = begin, .getattr = slow_getattr, .readdir = slow_readdir, .readlink = slow_readlink, .open = slow_open,
    .create = slow_create, .mkdir = slow_mkdir, .symlink = slow_symlink, .link = slow_link, .rename = slow_rename,
    .unlink = slow_unlink, .rmdir = slow_rmdir, .chmod = slow_chmod, .chown = slow_chown, .truncate = slow_truncate,
    .utimens = slow_utimens, .statfs = slow_statfs, .read = slow_read, .write = quick_write, .fsync = quick_fsync,
    .release = quick_release, .getxattr = quick_getxattr,
};

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: %s FOLDER MICROSECONDS READ_MICROSECONDS AT [OPTION...]\n", argv[0]);
        return 2;
    }
    folder = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) {
        perror(argv[1]);
        return 1;
    }
    latency_us = atol(argv[2]);
    read_us = atol(argv[3]);
    umask(0);
    prctl(PR_SET_TIMERSLACK, 1000); /* nanoseconds: a millisecond is a millisecond; threads inherit it */
    argv[3] = argv[0];
    return fuse_main(argc - 3, argv + 3, &operations, NULL);
}
