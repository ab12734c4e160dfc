//! Putting a machine together.
//!
//! In three steps, all on the main thread, before any vCPU runs:
//! 1. [`MachineBuilder::new`]: memory, KVM, buses, the legacy devices, an empty PCI bus;
//! 2. whoever has disks adds their controllers, with what [`MachineBuilder`] offers: lines, message
//!    vectors, doorbells, memory, buses;
//! 3. [`MachineBuilder::finish`]: BARs, ACPI tables, kernel, vCPUs.

use std::sync::Arc;

use sluice_aio::AioContext;
use sluice_devices::bus::{BusError, MmioBus, PioBus, PioDevice};
use sluice_devices::clock::Clock;
use sluice_devices::doorbell::Doorbells;
use sluice_devices::irq::{IrqLine, MsiController, SharedLine};
use sluice_devices::legacy::{
    CmosRtc, DebugExit, FwCfg, GpeBlock, I8042, PciHotplug, PmBlock, PvPanic, ResetControl,
    SerialPort, SerialSink,
};
use sluice_devices::pci::{
    Address, BarAllocator, Bridge, CONFIG_PORTS, IntxRouter, PciBus, PciError,
};
use sluice_devices::posted::{PostedWrites, Unposted};
use sluice_devices::reset::ResetHook;
use thiserror::Error;

use super::config::{AcceleratorConfig, DebugExitConfig, MachineConfig, MachineKind};
use super::controller::{Controller, Parts};
use super::engine::{Engine, Firmware, FirmwareError, KvmEngine};
use super::requests::Requests;
use super::routing::{PCI_GSIS, SCI};
use super::site::PciSite;
use crate::acpi::Platform;
use crate::boot::{BootError, BootImages};
use crate::exit::ExitStatus;
use crate::kvm::{Buses, InterruptRouter, KvmDoorbells, KvmError, KvmPostedWrites, KvmVm, VcpuSet};
use crate::memory::{GuestRam, MemoryError, MemoryLayout, PCI_MMIO_WINDOW, PCI_PIO_WINDOW};
use crate::qtest::QtestInterrupts;

/// Why a machine cannot be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The kernel, the initrd or the command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] crate::acpi::AcpiError),
    /// Two devices on the same ports.
    #[error("{device}: {source}")]
    Bus {
        /// The device that came second.
        device: &'static str,
        /// Where they meet.
        source: BusError,
    },
    /// A PCI function or its BARs.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A KVM machine without a kernel.
    #[error("there is nothing to boot: name a kernel with --kernel")]
    NoKernel,
}

impl BuildError {
    /// How the process ends when a machine cannot be built for this reason.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        match self {
            Self::Boot(_) | Self::NoKernel => ExitStatus::BootImage,
            Self::Kvm(
                KvmError::Missing
                | KvmError::Forbidden
                | KvmError::Open(_)
                | KvmError::Version(_)
                | KvmError::Capability(_),
            ) => ExitStatus::NoKvm,
            Self::Kvm(KvmError::Call { .. }) => ExitStatus::KvmError,
            Self::Kvm(KvmError::TooManyVcpus { .. } | KvmError::Thread { .. })
            | Self::Memory(_)
            | Self::Acpi(_)
            | Self::Bus { .. }
            | Self::Pci(_) => ExitStatus::Setup,
        }
    }
}

impl From<FirmwareError> for BuildError {
    fn from(error: FirmwareError) -> Self {
        match error {
            FirmwareError::Boot(error) => error.into(),
            FirmwareError::Acpi(error) => error.into(),
        }
    }
}

/// Where interrupts go.
enum Interrupts {
    Kvm {
        vm: KvmVm,
        router: Arc<InterruptRouter>,
        posted: Arc<KvmPostedWrites>,
    },
    Qtest(Arc<QtestInterrupts>),
}

impl Interrupts {
    fn line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        match self {
            Self::Kvm { router, .. } => router.line(gsi),
            Self::Qtest(recorder) => recorder.line(gsi),
        }
    }

    fn msi(&self, ram: &Arc<GuestRam>) -> Arc<dyn MsiController> {
        match self {
            Self::Kvm { router, .. } => Arc::clone(router) as _,
            Self::Qtest(recorder) => recorder.msi(ram),
        }
    }

    fn doorbells(&self) -> Arc<dyn Doorbells> {
        match self {
            Self::Kvm { vm, .. } => Arc::new(KvmDoorbells::new(Arc::clone(vm.fd()))),
            Self::Qtest(recorder) => Arc::clone(recorder) as _,
        }
    }
}

/// A machine without vCPUs, to which devices can be added.
pub struct MachineBuilder {
    config: MachineConfig,
    layout: MemoryLayout,
    images: Option<BootImages>,
    interrupts: Interrupts,
    buses: Buses,
    site: PciSite,
    pm: Arc<PmBlock>,
    gpe: Arc<GpeBlock>,
    hotplug: Arc<PciHotplug>,
    serial: Option<Arc<SerialPort>>,
    requests: Arc<Requests>,
    reset_hooks: Vec<Arc<dyn ResetHook>>,
    main: AioContext,
}

/// A machine that is ready to run.
pub struct Machine {
    /// Its verbs.
    pub controller: Arc<Controller>,
    /// Its first serial port, if it has one.
    pub serial: Option<Arc<SerialPort>>,
    /// Its address spaces.
    pub buses: Buses,
    /// Its memory.
    pub ram: Arc<GuestRam>,
    /// Its PCI functions, disks among them.
    pci: Arc<PciBus>,
    /// What a qtest client sees of interrupts; none on KVM.
    pub qtest: Option<Arc<QtestInterrupts>>,
}

impl Machine {
    /// Ends the disks' controllers for good, when no vCPU runs any more: cancels what the guest
    /// has waiting, awaits what is in flight. Their backends are out of use then. To be awaited in
    /// the main loop.
    pub fn retire_disks(&self) -> impl Future<Output = ()> + use<> {
        let pci = Arc::clone(&self.pci);
        async move { pci.retire().await }
    }
}

impl MachineBuilder {
    /// Memory, KVM (unless `config` says otherwise), buses and legacy devices. `serial` takes what the
    /// guest sends over the serial port; none: no port.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn new(
        config: &MachineConfig,
        main: AioContext,
        clock: Arc<dyn Clock>,
        serial: Option<Arc<dyn SerialSink>>,
    ) -> Result<Self, BuildError> {
        let kvm = config.accelerator == AcceleratorConfig::Kvm;
        if kvm && config.boot.is_none() {
            return Err(BuildError::NoKernel);
        }
        let mut images = config.boot.as_ref().map(BootImages::open).transpose()?;
        let layout = MemoryLayout::new(config.memory)?;
        if let Some(images) = &mut images {
            images.check_room(layout)?;
        }
        let ram = Arc::new(layout.map()?);
        let buses = Buses {
            pio: Arc::new(PioBus::new()),
            mmio: Arc::new(MmioBus::new()),
        };
        let interrupts = if kvm {
            let vm = KvmVm::new(Arc::clone(&ram))?;
            let router = InterruptRouter::new(Arc::clone(vm.fd()))?;
            let posted = KvmPostedWrites::new(Arc::clone(vm.fd()), Arc::clone(&buses.pio));
            Interrupts::Kvm { vm, router, posted }
        } else {
            Interrupts::Qtest(QtestInterrupts::new())
        };
        let pci = PciBus::new(
            Arc::clone(&buses.pio),
            Arc::clone(&buses.mmio),
            Arc::clone(&clock),
        );
        let site = PciSite {
            bus: pci,
            intx: Arc::new(IntxRouter::new(PCI_GSIS.map(|gsi| interrupts.line(gsi)))),
            msi: interrupts.msi(&ram),
            doorbells: interrupts.doorbells(),
            ram,
        };
        let requests = Requests::new(main.clone());
        let sci = SharedLine::new(interrupts.line(SCI.into()));
        let pm = Arc::new(PmBlock::new(
            sci.end(),
            Arc::clone(&clock),
            Arc::clone(&requests) as _,
        ));
        let gpe = Arc::new(GpeBlock::new(sci.end()));
        let serial = serial
            .map(|sink| Arc::new(SerialPort::new(interrupts.line(SerialPort::COM1_IRQ), sink)));
        let mut builder = Self {
            config: config.clone(),
            layout,
            images,
            interrupts,
            buses,
            site,
            pm,
            hotplug: PciHotplug::new(Arc::clone(&gpe)),
            gpe,
            serial,
            requests,
            reset_hooks: Vec::new(),
            main,
        };
        if config.kind == MachineKind::Pc {
            builder.add_legacy(clock)?;
            builder.add_bridges()?;
        }
        Ok(builder)
    }

    fn add_ports(
        &self,
        name: &'static str,
        first: u16,
        last: u16,
        device: Arc<dyn PioDevice>,
    ) -> Result<(), BuildError> {
        let inserted = self.buses.pio.insert(first..=last, device);
        inserted.map_err(|source| BuildError::Bus {
            device: name,
            source,
        })
    }

    fn add_legacy(&mut self, clock: Arc<dyn Clock>) -> Result<(), BuildError> {
        let machine = || Arc::clone(&self.requests) as Arc<_>;
        let rtc = Arc::new(CmosRtc::new(clock));
        self.add_ports("the clock", CmosRtc::INDEX_PORT, CmosRtc::DATA_PORT, rtc)?;
        let i8042 = Arc::new(I8042::new(machine()));
        let command = I8042::COMMAND_PORT;
        self.add_ports("the keyboard controller", command, command, i8042)?;
        let panic = Arc::new(PvPanic::new(machine()));
        self.add_ports("the panic port", PvPanic::PORT, PvPanic::PORT, panic)?;
        let reset = Arc::new(ResetControl::new(machine()));
        self.add_ports(
            "reset control",
            ResetControl::PORT,
            ResetControl::PORT,
            reset,
        )?;
        let pm = Arc::clone(&self.pm);
        self.add_ports(
            "power management",
            PmBlock::BASE,
            PmBlock::LAST,
            Arc::clone(&pm) as _,
        )?;
        self.reset_hooks.push(pm);
        let fw_cfg = Arc::new(FwCfg::new(
            self.config.memory,
            self.config.cpus.get(),
            self.config.uuid_number(),
        ));
        self.add_ports("fw_cfg", FwCfg::SELECTOR, FwCfg::DATA, fw_cfg)?;
        if let Some(DebugExitConfig { iobase, iosize }) = self.config.debug_exit {
            let last = iobase.saturating_add(iosize.max(1) - 1);
            self.add_ports(
                "isa-debug-exit",
                iobase,
                last,
                Arc::new(DebugExit::new(machine())),
            )?;
        }
        if let Some(serial) = self.serial.clone() {
            let last = SerialPort::COM1 + SerialPort::PORTS - 1;
            self.add_ports(
                "the serial port",
                SerialPort::COM1,
                last,
                Arc::clone(&serial) as _,
            )?;
            self.reset_hooks.push(serial);
        }
        Ok(())
    }

    /// The PCI bus with its bridges. The reset control register lies amidst the ports of
    /// configuration mechanism #1, of which only whole doublewords and the data ports matter.
    fn add_bridges(&mut self) -> Result<(), BuildError> {
        let address = *CONFIG_PORTS.start();
        let (data, last) = (address + 4, *CONFIG_PORTS.end());
        let pci = Arc::clone(&self.site.bus);
        self.add_ports("PCI configuration", address, address, Arc::clone(&pci) as _)?;
        self.add_ports("PCI configuration", data, last, Arc::clone(&pci) as _)?;
        pci.add(Address::new(0, 0), Bridge::host())?;
        pci.add(Address::new(1, 0), Bridge::isa())?;
        let gpe = Arc::clone(&self.gpe);
        self.add_ports("events", GpeBlock::BASE, GpeBlock::LAST, gpe)?;
        let hotplug = Arc::clone(&self.hotplug);
        self.add_ports("hotplug", PciHotplug::BASE, PciHotplug::LAST, hotplug)?;
        self.reset_hooks.push(Arc::clone(&self.gpe) as _);
        // What is to leave leaves before the bus is reset.
        self.reset_hooks.push(Arc::clone(&self.hotplug) as _);
        self.reset_hooks.push(pci);
        Ok(())
    }

    /// What PCI devices need.
    #[must_use]
    pub fn site(&self) -> &PciSite {
        &self.site
    }

    /// The registers by which a guest hears of what is plugged and unplugged.
    #[must_use]
    pub fn hotplug(&self) -> &Arc<PciHotplug> {
        &self.hotplug
    }

    /// The address spaces, for devices at fixed places.
    #[must_use]
    pub fn buses(&self) -> &Buses {
        &self.buses
    }

    /// The line of an ISA interrupt (edge triggered; one owner each).
    #[must_use]
    pub fn isa_line(&self, irq: u32) -> Arc<dyn IrqLine> {
        self.interrupts.line(irq)
    }

    /// Where writes to registers that only keep them are queued.
    #[must_use]
    pub fn posted(&self) -> Arc<dyn PostedWrites> {
        match &self.interrupts {
            Interrupts::Kvm { posted, .. } => Arc::clone(posted) as _,
            Interrupts::Qtest(_) => Arc::new(Unposted),
        }
    }

    /// Gives the BARs their addresses, writes the tables, loads the kernel and makes the vCPUs.
    /// The machine is in state `prelaunch` then.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn finish(self) -> Result<Machine, BuildError> {
        // A test assigns BARs itself, as firmware would, and finds none assigned.
        if matches!(self.interrupts, Interrupts::Kvm { .. }) {
            let bars = BarAllocator::new(PCI_PIO_WINDOW, PCI_MMIO_WINDOW);
            self.site.bus.assign_bars(bars)?;
        }
        let cpus = self.config.cpus.get();
        let mut firmware = Firmware {
            ram: Arc::clone(&self.site.ram),
            layout: self.layout,
            platform: Platform {
                cpus,
                serial: self.serial.is_some(),
            },
            images: self.images,
        };
        let mut qtest = None;
        let engine = match self.interrupts {
            Interrupts::Kvm { vm, posted, .. } => {
                let requests = Arc::clone(&self.requests);
                let entry = firmware.load()?.ok_or(BuildError::NoKernel)?;
                let failed = Arc::new(move |failure| requests.vcpu_failed(failure));
                let vcpus = VcpuSet::start(&vm, cpus, &self.buses, &posted, &(failed as _))?;
                self.requests.connect_vcpus(vcpus.handle());
                vcpus.reset(entry)?;
                Engine::Kvm(Box::new(KvmEngine {
                    vcpus,
                    vm,
                    firmware: firmware.into(),
                    stopped_at: None.into(),
                }))
            }
            Interrupts::Qtest(recorder) => {
                qtest = Some(recorder);
                Engine::Qtest
            }
        };
        let controller = Controller::new(Parts {
            name: self.config.name.clone(),
            uuid: self.config.uuid.clone(),
            kind: self.config.kind,
            cpus: self.config.cpus.get(),
            no_reboot: self.config.no_reboot,
            no_shutdown: self.config.no_shutdown,
            main: self.main,
            engine,
            pm: self.pm,
            reset_hooks: self.reset_hooks,
        });
        self.requests.connect(&controller);
        Ok(Machine {
            controller,
            serial: self.serial,
            buses: self.buses,
            ram: self.site.ram,
            pci: self.site.bus,
            qtest,
        })
    }
}
