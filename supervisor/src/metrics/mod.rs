//! What is measured, as OpenMetrics text: collected in the background while holdfastd serves it, or once for
//! `holdfast metrics`.

mod figures;
mod serve;

pub use figures::Measured;
pub use serve::serve;

use crate::api::Api;
use crate::registry::Refusal;

impl Measured {
    /// Asks everybody, each shim with a deadline.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] while holdfastd leaves; [`Refusal::Failed`] if other managers' containers cannot be seen.
    pub async fn collect(api: &Api) -> Result<Self, Refusal> {
        let foreign = api.foreign().await?;
        Ok(Self {
            output: api.outputs(&foreign).await?,
            containers: api.listed(true, &foreign).await?,
            info: api.information().await?,
        })
    }
}
