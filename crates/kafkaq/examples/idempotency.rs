//! A handler that charges twice if it is crashed at the wrong moment, and one that doesn't. `torture` finds the
//! difference. In memory, with nothing installed:
//! ```text
//! cargo run --example idempotency --features testing
//! ```
#![allow(clippy::print_stdout)]

use kafkaq::{
    TaskId,
    testing::{Disturbance, await_point, torture},
    worker::{Ctx, Failure, TaskType},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    error::Error,
    sync::{Mutex, MutexGuard, PoisonError},
};

#[derive(Clone, Serialize, Deserialize)]
struct Charge {
    customer: String,
    cents: u32,
}

impl TaskType for Charge {
    const KIND: &'static str = "charge";
}

/// A fake database: accounts, and the ids of tasks that were executed. The real one is awaited, so its fake is as well,
/// before and after each effect.
#[derive(Default)]
struct Database(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    charges: Vec<(String, u32)>,
    executed: BTreeSet<TaskId>,
}

impl Database {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn was_executed(&self, id: &TaskId) -> bool {
        await_point().await;
        let known = self.tables().executed.contains(id);
        await_point().await;
        known
    }

    async fn charge(&self, task: &Charge) {
        await_point().await;
        self.tables().charges.push((task.customer.clone(), task.cents));
        await_point().await;
    }

    async fn remember(&self, id: &TaskId) {
        await_point().await;
        self.tables().executed.insert(id.clone());
        await_point().await;
    }

    /// One transaction: a charge, and its id. The id is unique, so a second one adds nothing.
    async fn charge_once(&self, id: &TaskId, task: &Charge) {
        await_point().await;
        {
            let mut tables = self.tables();
            if tables.executed.insert(id.clone()) {
                tables.charges.push((task.customer.clone(), task.cents));
            }
        }
        await_point().await;
    }

    fn charges(&self) -> Vec<(String, u32)> {
        self.tables().charges.clone()
    }
}

/// Looks careful, but charges twice if it crashes between the charge and the record of it.
async fn charge_and_remember(ctx: Ctx<Database>, task: Charge) -> Result<(), Failure> {
    if ctx.state().was_executed(ctx.id()).await {
        return Ok(());
    }
    ctx.state().charge(&task).await;
    ctx.state().remember(ctx.id()).await;
    Ok(())
}

async fn charge_once(ctx: Ctx<Database>, task: Charge) -> Result<(), Failure> {
    ctx.state().charge_once(ctx.id(), &task).await;
    Ok(())
}

/// Tests both handlers with `torture`.
///
/// # Errors
/// If a result differs from what is described here.
pub(crate) async fn torture_both() -> Result<(), Box<dyn Error>> {
    let task = Charge { customer: "ada".to_owned(), cents: 500 };

    let planted = torture(charge_and_remember, task.clone()).run(Database::default, Database::charges).await;
    let error = planted.err().ok_or("the double charge was not found")?;
    println!("charge_and_remember: {error}\n");
    let crash = error.differences().iter().find(|d| matches!(d.disturbance, Disturbance::Crash { .. }));
    if crash.is_none_or(|crash| crash.found != r#"[("ada", 500), ("ada", 500)]"#) {
        return Err("another difference was found".into());
    }

    let report = torture(charge_once, task).run(Database::default, Database::charges).await?;
    println!("charge_once: {report}");
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    torture_both().await
}
