// User-mode Linux hands back only the part of the extended state that it knows (virtio_uml's kernel is older than AMX), and
// the kernel refuses an image shorter than the CPU's: "ptrace set fp regs failed, errno = 14". Preloaded into it, this
// writes the whole image with UML's part laid over it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

typedef long (*ptrace_fn)(int, int, void *, void *);

long ptrace(enum __ptrace_request request, ...) {
    ptrace_fn next = (ptrace_fn)dlsym(RTLD_NEXT, "ptrace");
    va_list args;
    va_start(args, request);
    int pid = va_arg(args, int);
    void *addr = va_arg(args, void *);
    void *data = va_arg(args, void *);
    va_end(args);
    if (request == PTRACE_SETREGSET && addr == (void *)NT_X86_XSTATE) {
        static char image[16384];
        const struct iovec *known = data;
        struct iovec whole = {image, sizeof image};
        if (next(PTRACE_GETREGSET, pid, addr, &whole) == 0 && known->iov_len < whole.iov_len) {
            memcpy(image, known->iov_base, known->iov_len);
            return next(PTRACE_SETREGSET, pid, addr, &whole);
        }
    }
    return next(request, pid, addr, data);
}
