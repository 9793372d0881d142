/* SPDK's threads: what runs whenever somebody polls it. The first one made is the application's. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spdk_cpuset;
struct spdk_io_channel;
struct spdk_thread;
typedef int (*spdk_new_thread_fn)(struct spdk_thread *thread);

int spdk_thread_lib_init(spdk_new_thread_fn callback, size_t context_size);
void spdk_thread_lib_fini(void);

struct spdk_thread *spdk_thread_create(const char *name, const struct spdk_cpuset *cpus);
struct spdk_thread *spdk_get_thread(void);
void spdk_set_thread(struct spdk_thread *thread);
int spdk_thread_poll(struct spdk_thread *thread, uint32_t max_messages, uint64_t now);
/* From within the thread; it is then polled until it has exited. */
int spdk_thread_exit(struct spdk_thread *thread);
bool spdk_thread_is_exited(struct spdk_thread *thread);
void spdk_thread_destroy(struct spdk_thread *thread);

void spdk_put_io_channel(struct spdk_io_channel *channel);
