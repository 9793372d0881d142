/* The environment: memory that devices may reach. */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct spdk_env_opts {
	const char *name;
	const char *core_mask;
	/* Set by the caller before spdk_env_opts_init(). */
	size_t opts_size;
};

void spdk_env_opts_init(struct spdk_env_opts *opts);
int spdk_env_init(const struct spdk_env_opts *opts);
void spdk_env_fini(void);

/* The third argument is to be null. */
void *spdk_dma_malloc(size_t size, size_t align, uint64_t *unused);
void spdk_dma_free(void *memory);
