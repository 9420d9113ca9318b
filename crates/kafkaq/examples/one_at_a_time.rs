//! Many changes of a few customers, one recalculation per customer and second, and never two of one customer
//! concurrently, across three workers. In memory, with nothing installed:
//! ```text
//! cargo run --example one_at_a_time
//! ```
#![allow(clippy::print_stdout)]

use kafkaq::{
    Queue,
    memory::{MemoryLog, MemoryStore},
    worker::{Ctx, Options, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

const WINDOW: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct Recalculate {
    customer: u32,
}

impl TaskType for Recalculate {
    const KIND: &'static str = "recalculate";
}

/// A fake database.
#[derive(Clone, Default)]
struct Database(Arc<Mutex<Tables>>);

#[derive(Default)]
struct Tables {
    /// How many orders each customer has.
    orders: BTreeMap<u32, u32>,
    /// How many of them are in the customer's total.
    totals: BTreeMap<u32, u32>,
    recalculating: BTreeSet<u32>,
    recalculations: u32,
    overlaps: u32,
}

impl Database {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_up_to_date(&self) -> bool {
        let tables = self.tables();
        tables.totals == tables.orders
    }
}

async fn recalculate(ctx: Ctx<Database>, Recalculate { customer }: Recalculate) {
    let orders = {
        let mut tables = ctx.state().tables();
        tables.overlaps += u32::from(!tables.recalculating.insert(customer));
        tables.recalculations += 1;
        tables.orders.get(&customer).copied().unwrap_or_default()
    };
    // Longer than a window, so without `one_at_a_time` the next one would start meanwhile.
    sleep(WINDOW * 3 / 2).await;
    let mut tables = ctx.state().tables();
    tables.totals.insert(customer, orders);
    tables.recalculating.remove(&customer);
}

/// Two customers order a hundred times per second, for three seconds.
///
/// # Errors
/// If a result differs from what is described here.
pub(crate) async fn order_and_recalculate() -> Result<(), Box<dyn Error>> {
    let (log, store, database) = (MemoryLog::new(), MemoryStore::new(), Database::default());
    let queue = || Queue::builder("orders").broker(log.clone()).store(store.clone()).build();
    let mut workers = Vec::new();
    for _ in 0..3 {
        let worker = Worker::builder(queue().await?).state(database.clone());
        workers.push(worker.on_with(recalculate, Options::new().one_at_a_time()).start()?);
    }

    let shop = queue().await?;
    for n in 0..300 {
        let customer = n % 2;
        *database.tables().orders.entry(customer).or_default() += 1;
        shop.enqueue(Recalculate { customer }).once_per(format!("customer-{customer}"), WINDOW).await?;
        sleep(Duration::from_millis(10)).await;
    }
    while !database.is_up_to_date() {
        sleep(Duration::from_millis(50)).await;
    }
    {
        let tables = database.tables();
        println!("300 orders, {} recalculations, {} overlaps", tables.recalculations, tables.overlaps);
        if tables.overlaps > 0 || tables.recalculations > 10 {
            return Err("too many".into());
        }
    }
    for mut worker in workers {
        worker.stop();
        println!("{}", worker.stopped().await?);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    order_and_recalculate().await
}
