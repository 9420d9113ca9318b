//! CPU-bound work. `on_blocking` runs it on threads that may block, two at a time here; leases are renewed meanwhile,
//! and async handlers aren't delayed. In memory, with nothing installed:
//! ```text
//! cargo run --example thumbnails
//! ```
#![allow(clippy::print_stdout)]

use kafkaq::{
    JobStatus, Queue,
    worker::{Ctx, Failure, Options, ResultExt, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    error::Error,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

#[derive(Clone, Serialize, Deserialize)]
struct Thumbnail {
    photo: String,
    width: usize,
}

impl TaskType for Thumbnail {
    const KIND: &'static str = "thumbnail";
}

/// Rows of grey pixels. A square, for simplicity.
type Image = Vec<Vec<u8>>;

/// A fake bucket with photos and their thumbnails.
#[derive(Default)]
struct Bucket {
    thumbnails: Mutex<BTreeMap<String, Image>>,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl Bucket {
    fn load(&self, photo: &str) -> Result<Image, String> {
        match photo.parse::<u8>() {
            Ok(grey) => Ok(vec![vec![grey; 256]; 256]),
            Err(_) => Err(format!("there is no photo {photo}")),
        }
    }
}

/// Writes under a name that follows from the task alone, so a second execution writes the same again.
fn thumbnail(ctx: Ctx<Arc<Bucket>>, task: Thumbnail) -> Result<(), Failure> {
    let bucket = ctx.state();
    bucket.most.fetch_max(bucket.running.fetch_add(1, SeqCst) + 1, SeqCst);
    let small = bucket.load(&task.photo).reject().and_then(|image| {
        let side = image.len() / task.width;
        let mean = |row: usize, column: usize| {
            let pixels = image[row * side..][..side].iter().flat_map(|line| &line[column * side..][..side]);
            pixels.map(|grey| usize::from(*grey)).sum::<usize>() / (side * side)
        };
        let mut small = Image::new();
        for row in 0..task.width {
            // A thread can't be stopped from outside, so it has to check.
            if let Some(reason) = ctx.stop().reason() {
                return Err(Failure::retry(format!("stopped: {reason:?}")));
            }
            small.push((0..task.width).map(|column| mean(row, column) as u8).collect());
        }
        Ok(small)
    });
    bucket.running.fetch_sub(1, SeqCst);
    let name = format!("{}@{}", task.photo, task.width);
    bucket.thumbnails.lock().unwrap_or_else(PoisonError::into_inner).insert(name, small?);
    Ok(())
}

/// Creates twenty thumbnails, and fails to create one of a photo that doesn't exist.
///
/// # Errors
/// If the queue fails.
pub(crate) async fn make_twenty() -> Result<(), Box<dyn Error>> {
    let queue = Queue::builder("photos").build().await?;
    let bucket = Arc::new(Bucket::default());
    let two = Options::new().concurrency(2).timeout(Duration::from_secs(60));
    let mut worker =
        Worker::builder(queue.clone()).state(bucket.clone()).on_blocking(thumbnail, two).start()?;

    let photos = (1..=20).map(|n: u8| n.to_string()).chain(["missing".to_owned()]);
    let tasks = photos.map(|photo| Thumbnail { photo, width: 64 });
    let mut statuses = Vec::new();
    for id in queue.enqueue_many(tasks).await {
        let id = id?;
        let status = loop {
            match queue.jobs().get(&id).await?.status {
                status @ (JobStatus::Done | JobStatus::Dead) => break status,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        statuses.push(status);
    }
    worker.stop();
    println!("{}", worker.stopped().await?);
    assert_eq!(statuses[..20], [JobStatus::Done; 20]);
    assert_eq!(statuses[20], JobStatus::Dead, "there is no such photo");
    let thumbnails = bucket.thumbnails.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(thumbnails["7@64"], vec![vec![7; 64]; 64]);
    assert!(bucket.most.load(SeqCst) <= 2, "{} at once", bucket.most.load(SeqCst));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    make_twenty().await
}
