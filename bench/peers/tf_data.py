"""tf.data, as TensorFlow's ResNet reference has it: TFRecords, decode_and_crop_jpeg, resize without antialiasing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import torch

from bench.peers.base import MEAN, STD, Job, Peer


class TFData(Peer):
    """See `Peer`. Converted to a TFRecord file once."""

    output = "float32 NHWC, normalised"
    note = "decodes the window alone; resize without antialiasing; sample_distorted_bounding_box draws smaller windows"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        # The process belongs to this peer: see `bench.peers.isolated`.
        tf.config.threading.set_intra_op_parallelism_threads(job.threads)
        tf.config.threading.set_inter_op_parallelism_threads(job.threads)
        path = str(job.scratch / "images.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for image, label in self.samples():
                writer.write(_example(image, label))
        options = tf.data.Options()
        options.threading.private_threadpool_size = job.threads
        dataset = (
            tf.data.TFRecordDataset(path)
            .shuffle(min(len(self.split), 16 * 1024))
            .repeat()
            .map(self._decode, num_parallel_calls=job.threads)
            .batch(job.batch_size, drop_remainder=True)
            .prefetch(2)
            .with_options(options)
        )
        self._loader = dataset.as_numpy_iterator()

    def _decode(self, record: Any) -> tuple[Any, Any]:
        features = {
            "image": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.FixedLenFeature([], tf.int64),
        }
        parsed = tf.io.parse_single_example(record, features)
        crop, jpeg = self.job.crop, parsed["image"]
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(jpeg),
            tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
            min_object_covered=0.0,
            aspect_ratio_range=crop.ratio,
            area_range=crop.scale,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(jpeg, window, channels=3)
        image = tf.image.resize(image, [crop.size, crop.size], "bilinear")
        image = tf.cond(
            tf.random.uniform([]) < crop.hflip, lambda: tf.image.flip_left_right(image), lambda: image
        )
        return (image - [m * 255 for m in MEAN]) / [s * 255 for s in STD], parsed["label"]

    def epoch(self) -> Iterator[tuple[Any, Any]]:
        """See `Peer.epoch`."""
        for _ in range(self.full_batches):
            images, labels = next(self._loader)
            yield torch.from_numpy(images), labels


def _example(image: bytes, label: int) -> bytes:
    feature = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    serialised: bytes = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    return serialised
