use super::*;
pub(super) struct Halves;
impl Contender for Halves {
    fn name(&self) -> &'static str {
        "parapet"
    }
    fn standing(&self) -> Standing {
        Standing::Ours
    }
    fn serves(&self, _: &Row) -> bool {
        false
    }
    fn run(&mut self, _: &Task) -> Result<Figures> {
        bail!("")
    }
}
