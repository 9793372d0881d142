/* Block devices: opening, asking what they are, and input and output by callback. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include "uuid.h"

struct spdk_bdev;
struct spdk_bdev_desc;
struct spdk_bdev_io;
struct spdk_io_channel;

enum spdk_bdev_event_type { SPDK_BDEV_EVENT_REMOVE, SPDK_BDEV_EVENT_RESIZE };
enum spdk_bdev_io_type { SPDK_BDEV_IO_TYPE_WRITE = 2, SPDK_BDEV_IO_TYPE_UNMAP = 3, SPDK_BDEV_IO_TYPE_FLUSH = 4 };

typedef void (*spdk_bdev_event_cb_t)(enum spdk_bdev_event_type event, struct spdk_bdev *bdev, void *context);
typedef void (*spdk_bdev_io_completion_cb)(struct spdk_bdev_io *io, bool success, void *context);

/* A descriptor is closed by the thread that opened it. */
int spdk_bdev_open_ext(const char *name, bool write, spdk_bdev_event_cb_t callback, void *context,
		       struct spdk_bdev_desc **opened);
void spdk_bdev_close(struct spdk_bdev_desc *desc);
struct spdk_bdev *spdk_bdev_desc_get_bdev(struct spdk_bdev_desc *desc);
struct spdk_io_channel *spdk_bdev_get_io_channel(struct spdk_bdev_desc *desc);

bool spdk_bdev_io_type_supported(struct spdk_bdev *bdev, enum spdk_bdev_io_type type);
bool spdk_bdev_has_write_cache(const struct spdk_bdev *bdev);
uint32_t spdk_bdev_get_block_size(const struct spdk_bdev *bdev);
uint32_t spdk_bdev_get_physical_block_size(const struct spdk_bdev *bdev);
uint32_t spdk_bdev_get_md_size(const struct spdk_bdev *bdev);
uint32_t spdk_bdev_get_write_unit_size(const struct spdk_bdev *bdev);
uint64_t spdk_bdev_get_num_blocks(const struct spdk_bdev *bdev);
const struct spdk_uuid *spdk_bdev_get_uuid(const struct spdk_bdev *bdev);

/* 0, and the callback comes later; or a negative errno, -ENOMEM where it may be tried again. */
int spdk_bdev_readv_blocks(struct spdk_bdev_desc *desc, struct spdk_io_channel *channel, struct iovec *pieces,
			   int count, uint64_t first_block, uint64_t blocks,
			   spdk_bdev_io_completion_cb callback, void *context);
int spdk_bdev_writev_blocks(struct spdk_bdev_desc *desc, struct spdk_io_channel *channel, struct iovec *pieces,
			    int count, uint64_t first_block, uint64_t blocks,
			    spdk_bdev_io_completion_cb callback, void *context);
int spdk_bdev_flush_blocks(struct spdk_bdev_desc *desc, struct spdk_io_channel *channel, uint64_t first_block,
			   uint64_t blocks, spdk_bdev_io_completion_cb callback, void *context);
int spdk_bdev_unmap_blocks(struct spdk_bdev_desc *desc, struct spdk_io_channel *channel, uint64_t first_block,
			   uint64_t blocks, spdk_bdev_io_completion_cb callback, void *context);
int spdk_bdev_write_zeroes_blocks(struct spdk_bdev_desc *desc, struct spdk_io_channel *channel,
				  uint64_t first_block, uint64_t blocks,
				  spdk_bdev_io_completion_cb callback, void *context);
void spdk_bdev_free_io(struct spdk_bdev_io *io);
